"""RetroInfer's tripartite attention in one pass: steady, retrieved and estimated zone (4.2)."""

from retrobench_kernels.wave_attention.naive import (
    cluster_tokens,
    value_sums,
    wave_attention,
)
from retrobench_kernels.wave_attention.zones import (
    CacheTable,
    Estimation,
    PageCache,
    Pages,
    Pool,
    Steady,
)

__all__ = [
    "CacheTable",
    "Estimation",
    "PageCache",
    "Pages",
    "Pool",
    "Steady",
    "cluster_tokens",
    "value_sums",
    "wave_attention",
]
