"""Selection of pages by the upper bound of their logits (Quest), one set per KV head."""

from retrobench_kernels.dispatch import op
from retrobench_kernels.page_select import naive
from retrobench_kernels.page_select.naive import best_pages

page_select = op(naive.page_select, chosen_by="low_BGCD")

__all__ = ["best_pages", "page_select"]
