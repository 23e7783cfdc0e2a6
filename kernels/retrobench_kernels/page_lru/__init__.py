"""Page table lookup and exact batch LRU of a block cache, with shapes that never depend on data."""

from retrobench_kernels.page_lru.naive import copy_pages, page_admit, page_lru, page_windows

__all__ = ["copy_pages", "page_admit", "page_lru", "page_windows"]
