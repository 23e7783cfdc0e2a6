"""A cached step of wave attention in plain torch: the four operations one after another."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from retrobench_kernels.dispatch import takes
from retrobench_kernels.page_lru.naive import copy_pages, page_admit, page_lru
from retrobench_kernels.wave_attention.naive import wave_attention
from retrobench_kernels.wave_attention.zones import (
    CacheTable,
    Estimation,
    Pool,
    Steady,
    WaveArgs,
)


class StepArgs(NamedTuple):
    """Arguments of ``wave_step``: those of ``wave_attention``, with a cache that changes."""

    q_BHD: Tensor
    steady: Steady
    pool: Pool
    retrieved_BGR: Tensor
    scale: float
    table: CacheTable
    estimation: Estimation | None = None
    softcap: float = 0.0

    @property
    def attention(self) -> WaveArgs:
        """The arguments of the attention in this step."""
        return WaveArgs(*self[:5], self.estimation, self.table.view, self.softcap)


@takes(StepArgs)
def wave_step(args: StepArgs) -> tuple[Tensor, Tensor]:
    """``(o_BHD, lse_BH)`` of ``wave_attention``; the table and the cached pages change in place.

    Look up, attend over cache and pool, copy what was missed, enter it into the table.
    """
    pool, table = args.pool, args.table
    page = cluster_pages(pool, args.retrieved_BGR, table.page_tokens)
    slot, victim = page_lru(page, table.slot_BGP, table.stamp_BGQ, table.step_1)
    hits, misses = (slot >= 0).sum(-1), ((page >= 0) & (slot < 0)).sum(-1)
    table.tally_BG2.add_(torch.stack([hits, misses], -1))
    result = wave_attention(*args.attention)
    for source, target in ((pool.k_BGSD, table.k_BGQD), (pool.v_BGSD, table.v_BGQD)):
        copy_pages(source, target, page, victim, table.page_tokens)
    page_admit(page, victim, table.slot_BGP, table.page_BGQ, table.stamp_BGQ, table.step_1)
    return result


def cluster_pages(pool: Pool, cluster_BGR: Tensor, page_tokens: int) -> Tensor:
    """Pages of clusters in order, int32 ``page_BGN``, -1 padded."""
    index = cluster_BGR.clamp_min(0).long()
    size = pool.size_BGC.gather(-1, index) * (cluster_BGR >= 0)
    pages = (size + page_tokens - 1) // page_tokens
    first = pool.first_BGC.gather(-1, index) // page_tokens
    offset = torch.arange(int(pages.max()) if pages.numel() else 0, device=pages.device)
    page = (first[..., None] + offset).masked_fill(offset >= pages[..., None], -1).flatten(2)
    front = (page < 0).int().argsort(dim=-1, stable=True)
    return page.gather(-1, front).int()
