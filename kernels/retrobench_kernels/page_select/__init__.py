"""Selection of pages by the upper bound of their logits (Quest), one set per KV head."""

from retrobench_kernels.page_select.naive import best_pages, page_select

__all__ = ["best_pages", "page_select"]
