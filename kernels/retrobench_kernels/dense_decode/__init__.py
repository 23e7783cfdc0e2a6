"""Full attention of one decode token, split over the context."""

from retrobench_kernels.dense_decode import naive
from retrobench_kernels.dispatch import op

dense_decode = op(naive.dense_decode)

__all__ = ["dense_decode"]
