"""Page table lookup and exact batch LRU in plain torch, with shapes that never depend on data.

``B`` batch, ``G`` KV heads, ``P`` pages, ``Q`` slots, ``N`` pages asked for in a step. All pages
of a step are equally recent; ties among slots go to the lower one.
"""

from __future__ import annotations

import torch
from torch import Tensor

_MAX = torch.iinfo(torch.int32).max


def page_lru(
    page_BGN: Tensor, slot_BGP: Tensor, stamp_BGQ: Tensor, step_1: Tensor
) -> tuple[Tensor, Tensor]:
    """Slots of distinct pages (-1 padded), and for absent ones the slot that they shall take.

    ``slot_BGP`` (page to slot or -1) is read, ``stamp_BGQ`` (step of last use, -1: free) of the
    hits becomes ``step_1``; all int32. Returns ``(slot_BGN, victim_BGN)``, -1 for absent, and for
    hits and what does not fit. The table changes only in ``page_admit``, after the data has moved.
    """
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


def page_admit(
    page_BGN: Tensor,
    victim_BGN: Tensor,
    slot_BGP: Tensor,
    page_BGQ: Tensor,
    stamp_BGQ: Tensor,
    step_1: Tensor,
) -> None:
    """Enter pages into the slots that ``page_lru`` gave them; the pages in those slots leave."""
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
    stamp_BGQ.scatter_reduce_(-1, slot, torch.where(enters, step_1, -1).to(stamp_BGQ.dtype), "amax")


def copy_pages(
    pool_BGSD: Tensor,
    cache_BGQD: Tensor,
    page_BGN: Tensor,
    victim_BGN: Tensor,
    page_tokens: int,
) -> None:
    """Copy pages of a pool (on any device) into their slots of the cache."""
    row, head, column = torch.nonzero(victim_BGN >= 0, as_tuple=True)
    page, slot = page_BGN[row, head, column].long(), victim_BGN[row, head, column].long()
    source = pool_BGSD.unflatten(2, (-1, page_tokens))
    target = cache_BGQD.unflatten(2, (-1, page_tokens))
    where = pool_BGSD.device
    moved = source[row.to(where), head.to(where), page.to(where)]
    target[row, head, slot] = moved.to(cache_BGQD.device)
