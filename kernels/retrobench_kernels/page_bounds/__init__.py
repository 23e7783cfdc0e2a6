"""Upper bounds of attention logits per page (Quest)."""

from retrobench_kernels.page_bounds.naive import page_extrema, upper_bound

__all__ = ["page_extrema", "upper_bound"]
