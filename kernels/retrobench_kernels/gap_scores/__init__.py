"""Speculated importance of tokens from a few channels of their keys (InfiniGen)."""

from retrobench_kernels.dispatch import op
from retrobench_kernels.gap_scores import naive
from retrobench_kernels.gap_scores.naive import head_gaps

gap_scores = op(naive.gap_scores, chosen_by="key_BGSC")

__all__ = ["gap_scores", "head_gaps"]
