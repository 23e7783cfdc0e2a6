"""Upper bounds of attention logits per page (Quest)."""

from retrobench_kernels.dispatch import op
from retrobench_kernels.page_bounds import naive

page_extrema = op(naive.page_extrema)
upper_bound = op(naive.upper_bound)

__all__ = ["page_extrema", "upper_bound"]
