"""RetroInfer's tripartite attention in one pass: steady, retrieved and estimated zone."""

from retrobench_kernels.dispatch import op
from retrobench_kernels.wave_attention import naive
from retrobench_kernels.wave_attention.naive import cluster_tokens
from retrobench_kernels.wave_attention.zones import Estimation, PageCache, Pool, Steady

wave_attention = op(naive.wave_attention)

__all__ = ["Estimation", "PageCache", "Pool", "Steady", "cluster_tokens", "wave_attention"]
