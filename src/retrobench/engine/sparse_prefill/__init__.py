"""Sparse prefill: each block of the prompt's queries attends to the keys that a pattern chose."""

from retrobench.engine.sparse_prefill.attention import SparsePrefill
from retrobench.engine.sparse_prefill.config import PrefillConfig

__all__ = ["PrefillConfig", "SparsePrefill"]
