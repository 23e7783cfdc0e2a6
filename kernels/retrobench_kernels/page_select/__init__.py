"""Selection of pages by the upper bound of their logits (Quest), one set per KV head."""

from __future__ import annotations

from torch import Tensor

from retrobench_kernels.dispatch import implementation


def page_select(
    q_BHD: Tensor,
    low_BGCD: Tensor,
    high_BGCD: Tensor,
    num_pages_B: Tensor,
    selected_B: Tensor,
    *,
    max_selected: int,
    newest: bool,
) -> Tensor:
    """``page_BGK``; see ``naive.py``."""
    run = implementation("page_select", low_BGCD).page_select
    counts = num_pages_B, selected_B
    return run(q_BHD, low_BGCD, high_BGCD, *counts, max_selected=max_selected, newest=newest)


__all__ = ["page_select"]
