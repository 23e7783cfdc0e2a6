"""Upper bounds of attention logits per page (Quest)."""

from __future__ import annotations

from torch import Tensor

from retrobench_kernels.dispatch import implementation


def page_extrema(k_BGSD: Tensor, page_size: int, valid_BS: Tensor) -> tuple[Tensor, Tensor]:
    """Element-wise (min, max) of the keys of each page, ``BGCD``; see ``naive.py``."""
    return implementation("page_bounds", k_BGSD).page_extrema(k_BGSD, page_size, valid_BS)


def upper_bound(q_BHD: Tensor, low_BGCD: Tensor, high_BGCD: Tensor) -> Tensor:
    """Upper bound of ``q.k`` per query head and page, ``BHC`` in float32; see ``naive.py``."""
    return implementation("page_bounds", q_BHD).upper_bound(q_BHD, low_BGCD, high_BGCD)


__all__ = ["page_extrema", "upper_bound"]
