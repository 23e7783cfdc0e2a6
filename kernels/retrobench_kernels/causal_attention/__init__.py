"""Attention of a chunk of the prompt over everything up to each of its tokens."""

from retrobench_kernels.causal_attention.naive import causal_attention

__all__ = ["causal_attention"]
