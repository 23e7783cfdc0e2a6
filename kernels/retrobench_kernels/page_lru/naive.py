"""Page table lookup and exact batch LRU of a block cache, with shapes that never depend on data.

``B`` batch, ``G`` KV heads, ``P`` pages, ``Q`` slots, ``N`` pages asked for in a step. All pages
of a step are equally recent; ties among slots go to the lower one.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from retrobench_kernels.dispatch import op, op_of
from retrobench_kernels.wave_attention.zones import CacheTable

_MAX = torch.iinfo(torch.int32).max


@op
def page_lru(page_BGN: Tensor, table: CacheTable) -> tuple[Tensor, Tensor]:
    """Slots of distinct pages (-1 padded), and for absent ones the slot that they shall take.

    The stamps of hits become this step. Returns ``(slot_BGN, victim_BGN)``, -1 for absent, and for
    hits and what does not fit. Page table and owners change only in ``page_admit``, after the data
    has moved.
    """
    slot_BGP, stamp_BGQ, step_1 = table.slot_BGP, table.stamp_BGQ, table.step_1
    slots = stamp_BGQ.shape[-1]
    slot_BGN = slot_BGP.gather(-1, page_BGN.clamp_min(0).long())
    slot_BGN = torch.where(page_BGN >= 0, slot_BGN, -1)
    hit = slot_BGN >= 0
    touch = torch.where(hit, step_1, -1).to(stamp_BGQ.dtype)
    stamp_BGQ.scatter_reduce_(-1, slot_BGN.clamp_min(0).long(), touch, "amax")
    missing = (page_BGN >= 0) & ~hit
    room_BG1 = slots - (stamp_BGQ == step_1).sum(-1, keepdim=True)
    nth = missing.cumsum(-1) - 1
    order_BGQ = stamp_BGQ.argsort(dim=-1, stable=True)
    victim = order_BGQ.gather(-1, nth.clamp(0, slots - 1)).to(slot_BGP.dtype)
    return slot_BGN, torch.where(missing & (nth < room_BG1), victim, -1)


@op
def page_admit(page_BGN: Tensor, victim_BGN: Tensor, table: CacheTable) -> None:
    """Enter pages into the slots that ``page_lru`` gave them; the pages in those slots leave."""
    slot_BGP, page_BGQ, stamp_BGQ = table.slot_BGP, table.page_BGQ, table.stamp_BGQ
    enters = victim_BGN >= 0
    slot = victim_BGN.clamp_min(0).long()
    leaving = page_BGQ.gather(-1, slot)
    leaves = enters & (leaving >= 0)
    slot_BGP.scatter_reduce_(
        -1, leaving.clamp_min(0).long(), torch.where(leaves, -1, _MAX).to(torch.int32), "amin"
    )
    page = page_BGN.clamp_min(0).long()
    slot_BGP.scatter_reduce_(-1, page, torch.where(enters, victim_BGN, -1), "amax")
    page_BGQ.scatter_reduce_(-1, slot, torch.where(enters, -1, _MAX).to(torch.int32), "amin")
    page_BGQ.scatter_reduce_(-1, slot, torch.where(enters, page_BGN, -1), "amax")
    stamp = torch.where(enters, table.step_1, -1).to(stamp_BGQ.dtype)
    stamp_BGQ.scatter_reduce_(-1, slot, stamp, "amax")


class CopyArgs(NamedTuple):
    """Arguments of ``copy_pages``. The pool may be on any device.

    ``start_BGN`` (int32) is where each page begins in the pool, ``victim_BGN`` its slot or -1.
    """

    pool_BGSD: Tensor
    cache_BGQD: Tensor
    start_BGN: Tensor
    victim_BGN: Tensor
    page_tokens: int


@op_of(CopyArgs, chosen_by="cache_BGQD")
def copy_pages(args: CopyArgs) -> None:
    """Copy pages of a pool into their slots of the cache."""
    pool_BGSD, cache_BGQD, start_BGN, victim_BGN, page_tokens = args
    row, head, column = torch.nonzero(victim_BGN >= 0, as_tuple=True)
    start, slot = start_BGN[row, head, column].long(), victim_BGN[row, head, column].long()
    target = cache_BGQD.unflatten(2, (-1, page_tokens))
    at = (x.to(pool_BGSD.device) for x in (row, head, start))
    moved = page_windows(pool_BGSD, page_tokens)[tuple(at)]
    target[row, head, slot] = moved.to(cache_BGQD.device)


def page_windows(pool_BGSD: Tensor, page_tokens: int) -> Tensor:
    """Every run of ``page_tokens`` tokens by its first token, a view."""
    batch, groups, tokens, dim = pool_BGSD.shape
    size = (batch, groups, max(0, tokens - page_tokens + 1), page_tokens, dim)
    row, head, token, value = pool_BGSD.stride()
    return pool_BGSD.as_strided(size, (row, head, token, token, value))
