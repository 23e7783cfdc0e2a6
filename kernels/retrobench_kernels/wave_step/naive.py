"""Wave attention of one decode step with its cache: look up, attend, admit what was missed."""

import torch
from torch import Tensor

from retrobench_kernels.dispatch import op_of
from retrobench_kernels.page_lru.naive import copy_pages, page_admit, page_lru
from retrobench_kernels.wave_attention.naive import wave_attention
from retrobench_kernels.wave_attention.zones import CacheTable, Pages, Pool, WaveArgs


@op_of(WaveArgs)
def wave_step(args: WaveArgs) -> tuple[Tensor, Tensor]:
    """``(o_BHD, lse_BH)`` of ``wave_attention`` with a ``CacheTable`` as its cache.

    The table and the cached pages change in place: look up, attend over cache and pool, copy what
    was missed, enter it into the table.
    """
    pool, table = args.pool, args.cache
    assert isinstance(table, CacheTable)
    page, tokens, start = cluster_pages(pool, args.retrieved_BGR, table.page_tokens)
    slot, victim = page_lru.reference(page, table)
    missed = (page >= 0) & (slot < 0)
    out = (victim >= 0) & (table.page_BGQ.gather(-1, victim.clamp_min(0).long()) >= 0)
    tally = [x.sum(-1) for x in (slot >= 0, missed, out, tokens * missed)]
    table.tally_BG4.add_(torch.stack(tally, -1))
    result = wave_attention.reference(*args._replace(cache=table.view))
    for source, target in ((pool.k_BGSD, table.k_BGQD), (pool.v_BGSD, table.v_BGQD)):
        copy_pages.reference(source, target, start, victim, table.page_tokens)
    page_admit.reference(page, victim, table)
    return result


def cluster_pages(pool: Pool, cluster_BGR: Tensor, page_tokens: int) -> Pages:
    """Pages of clusters (-1 padded)."""
    index = cluster_BGR.clamp_min(0).long()
    size = pool.size_BGC.gather(-1, index) * (cluster_BGR >= 0)
    first, number = pool.first_BGC.gather(-1, index), pool.first_page(page_tokens)
    number = number.gather(-1, index)
    pages = (size + page_tokens - 1) // page_tokens
    end = pages.cumsum(-1)
    total = end[..., -1:]
    nth = torch.arange(int(total.max()), device=end.device).expand(*end.shape[:2], -1)
    which = torch.searchsorted(end, nth.contiguous(), right=True).clamp_max(end.shape[-1] - 1)
    inside = nth - (end - pages).gather(-1, which)
    page = number.gather(-1, which) + inside
    start = first.gather(-1, which) + inside * page_tokens
    tokens = (size.gather(-1, which) - inside * page_tokens).clamp(0, page_tokens)
    absent = nth >= total
    parts = zip((page, tokens, start), (-1, 0, 0), strict=True)
    return Pages(*(part.masked_fill(absent, nothing).int() for part, nothing in parts))
