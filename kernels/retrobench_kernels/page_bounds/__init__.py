"""Page extrema and Quest's upper bound of logits per page (arXiv 2406.10774, section 3.3)."""

from retrobench_kernels.page_bounds.naive import page_extrema, upper_bound

__all__ = ["page_extrema", "upper_bound"]
