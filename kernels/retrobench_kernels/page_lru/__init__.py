"""Page table lookup and exact batch LRU of a fast tier that lives on the accelerator."""

from retrobench_kernels.page_lru.naive import copy_pages, page_admit, page_lru

__all__ = ["copy_pages", "page_admit", "page_lru"]
