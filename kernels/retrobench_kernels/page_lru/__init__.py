"""Page table lookup and exact batch LRU of a fast tier that lives on the accelerator."""

from __future__ import annotations

from torch import Tensor

from retrobench_kernels.dispatch import implementation


def page_lru(
    page_BGN: Tensor, slot_BGP: Tensor, stamp_BGQ: Tensor, step_1: Tensor
) -> tuple[Tensor, Tensor]:
    """``(slot_BGN, victim_BGN)``; see ``naive.py``."""
    run = implementation("page_lru", page_BGN).page_lru
    return run(page_BGN, slot_BGP, stamp_BGQ, step_1)


def page_admit(
    page_BGN: Tensor,
    victim_BGN: Tensor,
    slot_BGP: Tensor,
    page_BGQ: Tensor,
    stamp_BGQ: Tensor,
    step_1: Tensor,
) -> None:
    """Enter pages into the slots that ``page_lru`` gave them; see ``naive.py``."""
    run = implementation("page_lru", page_BGN).page_admit
    run(page_BGN, victim_BGN, slot_BGP, page_BGQ, stamp_BGQ, step_1)


def copy_pages(
    pool_BGSD: Tensor,
    cache_BGQD: Tensor,
    page_BGN: Tensor,
    victim_BGN: Tensor,
    page_tokens: int,
) -> None:
    """Copy pages of a pool into their slots of the cache; see ``naive.py``.

    A GPU reads a pinned pool by itself; pageable memory goes through torch.
    """
    readable = pool_BGSD.device == cache_BGQD.device or pool_BGSD.is_pinned()
    if readable:
        run = implementation("page_lru", cache_BGQD).copy_pages
    else:
        from retrobench_kernels.page_lru.naive import copy_pages as run
    run(pool_BGSD, cache_BGQD, page_BGN, victim_BGN, page_tokens)


__all__ = ["copy_pages", "page_admit", "page_lru"]
