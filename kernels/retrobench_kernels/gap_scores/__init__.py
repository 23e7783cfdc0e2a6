"""Speculated importance of tokens from a few channels of their keys (InfiniGen)."""

from __future__ import annotations

from torch import Tensor

from retrobench_kernels.dispatch import implementation


def gap_scores(
    q_BGNC: Tensor, key_BGSC: Tensor, exists_BGS: Tensor, scale: float, *, per_head: bool
) -> Tensor:
    """``score_BGS`` or, per query head, ``score_BHS``; see ``naive.py``."""
    run = implementation("gap_scores", key_BGSC).gap_scores
    return run(q_BGNC, key_BGSC, exists_BGS, scale, per_head=per_head)


__all__ = ["gap_scores"]
