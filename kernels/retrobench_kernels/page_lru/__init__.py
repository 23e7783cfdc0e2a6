"""Page table lookup and exact batch LRU of a block cache, with its tables on the accelerator."""

from retrobench_kernels.dispatch import op
from retrobench_kernels.page_lru import naive

page_lru = op(naive.page_lru)
page_admit = op(naive.page_admit)
copy_pages = op(naive.copy_pages, chosen_by="cache_BGQD")

__all__ = ["copy_pages", "page_admit", "page_lru"]
