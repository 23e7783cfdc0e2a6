"""Full attention of one decode token, split over the context."""

from __future__ import annotations

from torch import Tensor

from retrobench_kernels.dispatch import implementation


def dense_decode(
    q_BHD: Tensor,
    k_BGSD: Tensor,
    v_BGSD: Tensor,
    scale: float,
    *,
    start_B: Tensor | None = None,
    end_B: Tensor | None = None,
    softcap: float = 0.0,
) -> tuple[Tensor, Tensor]:
    """``(o_BHD, lse_BH)`` of one token over the context; see ``naive.py``."""
    run = implementation("dense_decode", q_BHD).dense_decode
    return run(q_BHD, k_BGSD, v_BGSD, scale, start_B=start_B, end_B=end_B, softcap=softcap)
