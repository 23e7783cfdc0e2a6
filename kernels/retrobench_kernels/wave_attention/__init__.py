"""RetroInfer's tripartite attention in one pass: steady, retrieved and estimated zone."""

from __future__ import annotations

from torch import Tensor

from retrobench_kernels.dispatch import implementation
from retrobench_kernels.wave_attention.zones import Estimation, PageCache, Pool, Steady

__all__ = ["Estimation", "PageCache", "Pool", "Steady", "wave_attention"]


def wave_attention(
    q_BHD: Tensor,
    steady: Steady,
    pool: Pool,
    retrieved_BGR: Tensor,
    scale: float,
    *,
    estimation: Estimation | None = None,
    cache: PageCache | None = None,
    softcap: float = 0.0,
) -> tuple[Tensor, Tensor]:
    """``(o_BHD, lse_BH)``; see ``naive.py``."""
    run = implementation("wave_attention", q_BHD).wave_attention
    return run(
        q_BHD,
        steady,
        pool,
        retrieved_BGR,
        scale,
        estimation=estimation,
        cache=cache,
        softcap=softcap,
    )
