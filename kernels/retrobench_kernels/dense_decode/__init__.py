"""Full attention of one decode token; the reference is in plain torch."""

from retrobench_kernels.dense_decode.naive import dense_decode

__all__ = ["dense_decode"]
