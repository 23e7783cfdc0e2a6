"""Speculated importance of tokens from a few channels of their keys (InfiniGen)."""

from retrobench_kernels.logit_margin.naive import head_margins, logit_margin

__all__ = ["head_margins", "logit_margin"]
