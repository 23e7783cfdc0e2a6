"""Lookup, exact batch LRU and admission on a GPU: one small program per (row, KV head).

All bookkeeping stays in device memory, so that a decode step needs no host. Slots are ordered by
(stamp, slot) with one sort in registers; the n-th missing page takes the n-th slot. The program
meets itself at two barriers: hits are stamped before slots are ordered, and the order is written
before pages pick from it.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from retrobench_kernels import triton_common as common
from retrobench_kernels.page_lru import naive
from retrobench_kernels.page_lru.naive import CopyArgs
from retrobench_kernels.triton_common import addressable, head_stride
from retrobench_kernels.wave_attention.zones import CacheTable


def unsupported(tensor: Tensor) -> str | None:
    """Never: tables are integers, and pages are copied as they are."""
    return None


@common.kernel
def lookup_kernel(
    page_ptr, tokens_ptr, count_ptr, table_ptr, stamp_ptr, owner_ptr, now_ptr, order_ptr,
    slot_ptr, victim_ptr, source_ptr, tally_ptr,
    width, slots, table_stride, stamp_stride,
    SLOTS_PAD: tl.constexpr, CHUNK: tl.constexpr, PAGE: tl.constexpr, ADMIT: tl.constexpr,
):  # fmt: skip
    """``page_lru``; with ADMIT also ``page_admit``, the source of each page, and the tally."""
    h = tl.program_id(0)
    head = h.to(tl.int64)
    page_ptr += head * width
    table_ptr += head * table_stride
    stamp_ptr += head * stamp_stride
    order_ptr += head * SLOTS_PAD
    now = tl.load(now_ptr)
    count = width
    if ADMIT:
        count = tl.load(count_ptr + h)
    lane = tl.arange(0, CHUNK)
    hits = 0
    for start in range(0, count, CHUNK):
        page = tl.load(page_ptr + start + lane, mask=start + lane < count, other=-1)
        slot = tl.load(table_ptr + page, mask=page >= 0, other=-1)
        tl.store(stamp_ptr + slot, tl.zeros([CHUNK], tl.int32) + now, mask=slot >= 0)
        hits += tl.sum((slot >= 0).to(tl.int32), 0)
    tl.debug_barrier()
    every = tl.arange(0, SLOTS_PAD)
    stamp = tl.load(stamp_ptr + every, mask=every < slots, other=0x7FFFFFFF)
    key = (stamp.to(tl.int64) << 32) + every
    tl.store(order_ptr + every, (tl.sort(key) & 0xFFFFFFFF).to(tl.int32))
    room = slots - tl.sum(((stamp == now) & (every < slots)).to(tl.int32), 0)
    tl.debug_barrier()
    missed = 0
    left, moved = 0, 0
    for start in range(0, count, CHUNK):
        at = start + lane
        page = tl.load(page_ptr + at, mask=at < count, other=-1)
        # admissions of earlier chunks changed entries of other pages only
        slot = tl.load(table_ptr + page, mask=page >= 0, other=-1)
        missing = (page >= 0) & (slot < 0)
        rank = missed + tl.cumsum(missing.to(tl.int32), 0) - 1
        enters = missing & (rank < room)
        victim = tl.load(order_ptr + rank, mask=enters, other=-1)
        missed += tl.sum(missing.to(tl.int32), 0)
        if ADMIT:
            leaving = tl.load(owner_ptr + head * slots + victim, mask=enters, other=-1)
            gone = tl.full([CHUNK], -1, tl.int32)
            tl.store(table_ptr + leaving, gone, mask=leaving >= 0)
            tl.store(table_ptr + page, victim, mask=enters)
            tl.store(owner_ptr + head * slots + victim, page, mask=enters)
            tl.store(stamp_ptr + victim, tl.zeros([CHUNK], tl.int32) + now, mask=enters)
            left += tl.sum((leaving >= 0).to(tl.int32), 0)
            moved += _num_tokens(tokens_ptr + head * width + at, missing, PAGE)
            source = tl.where(enters, -2 - victim, slot)
            tl.store(source_ptr + head * width + at, source, mask=at < count)
        else:
            tl.store(slot_ptr + head * width + at, slot, mask=at < count)
            tl.store(victim_ptr + head * width + at, victim, mask=at < count)
    if ADMIT:
        _add(tally_ptr + 4 * h, hits, missed, left, moved)


@triton.jit
def _num_tokens(tokens_ptr, missing, PAGE: tl.constexpr):
    """Tokens of the missing pages; the list does not say where every page has one."""
    tokens = missing.to(tl.int32)
    if PAGE > 1:
        tokens = tl.load(tokens_ptr, mask=missing, other=0)
    return tl.sum(tokens, 0)


@triton.jit
def _add(tally_ptr, hits, missed, left, moved):
    """To the table's tally of one head."""
    tl.store(tally_ptr, tl.load(tally_ptr) + hits)
    tl.store(tally_ptr + 1, tl.load(tally_ptr + 1) + missed)
    tl.store(tally_ptr + 2, tl.load(tally_ptr + 2) + left)
    tl.store(tally_ptr + 3, tl.load(tally_ptr + 3) + moved)


@common.kernel
def admit_kernel(
    page_ptr, victim_ptr, table_ptr, owner_ptr, stamp_ptr, now_ptr,
    width, slots, table_stride, stamp_stride, CHUNK: tl.constexpr,
):  # fmt: skip
    """``page_admit``."""
    head = tl.program_id(0).to(tl.int64)
    lane = tl.arange(0, CHUNK)
    now = tl.load(now_ptr)
    table_ptr += head * table_stride
    owner_ptr += head * slots
    for start in range(0, width, CHUNK):
        at = head * width + start + lane
        victim = tl.load(victim_ptr + at, mask=start + lane < width, other=-1)
        enters = victim >= 0
        page = tl.load(page_ptr + at, mask=enters, other=-1)
        leaving = tl.load(owner_ptr + victim, mask=enters, other=-1)
        tl.store(table_ptr + leaving, tl.full([CHUNK], -1, tl.int32), mask=leaving >= 0)
        tl.store(table_ptr + page, victim, mask=enters)
        tl.store(owner_ptr + victim, page, mask=enters)
        at = head * stamp_stride + victim
        tl.store(stamp_ptr + at, tl.zeros([CHUNK], tl.int32) + now, mask=enters)


@common.kernel
def copy_kernel(
    pool_ptr, cache_ptr, start_ptr, victim_ptr, width, pool_stride, cache_stride,
    DIM: tl.constexpr, PAGE_VALUES: tl.constexpr, PAGE_PAD: tl.constexpr,
):  # fmt: skip
    """One page of the pool (device or pinned host memory) to its slot."""
    head = tl.program_id(1).to(tl.int64)
    at = head * width + tl.program_id(0)
    victim = tl.load(victim_ptr + at)
    start = tl.load(start_ptr + at)
    lane = tl.arange(0, PAGE_PAD)
    mask = lane < tl.where(victim >= 0, PAGE_VALUES, 0)
    source = pool_ptr + head * pool_stride + start.to(tl.int64) * DIM + lane
    target = cache_ptr + head * cache_stride + victim.to(tl.int64) * PAGE_VALUES + lane
    tl.store(target, tl.load(source, mask=mask), mask=mask)


def page_lru(page_BGN: Tensor, table: CacheTable) -> tuple[Tensor, Tensor]:
    """See the reference."""
    slot, victim = torch.empty_like(page_BGN), torch.empty_like(page_BGN)
    _lookup(page_BGN, table, slot=slot, victim=victim)
    return slot, victim


def page_step(page_BGN: Tensor, tokens_BGN: Tensor, count_BG: Tensor, table: CacheTable) -> Tensor:
    """``page_lru`` and ``page_admit`` in one launch, for an attention that copies on the way.

    Only the first ``count_BG`` pages of each list are looked at. Returns ``source_BGN`` as
    ``PageList`` defines it and adds to the table's tally.
    """
    assert table.page_BGQ.is_contiguous()
    source = torch.empty_like(page_BGN)
    _lookup(page_BGN, table, tokens=tokens_BGN, count=count_BG, source=source)
    return source


def _lookup(page_BGN: Tensor, table: CacheTable, **given: Tensor) -> None:
    """Launch the kernel; it admits if ``source`` is given. Any tensor stands for what is not."""
    batch, groups, width = page_BGN.shape
    slots = table.stamp_BGQ.shape[-1]
    padded = triton.next_power_of_2(slots)
    order = torch.empty(batch, groups, padded, dtype=torch.int32, device=page_BGN.device)
    assert page_BGN.is_contiguous()
    tokens, count, slot, victim, source = (
        given.get(name, page_BGN) for name in ("tokens", "count", "slot", "victim", "source")
    )
    lookup_kernel[(batch * groups,)](
        page_BGN, tokens, count,
        table.slot_BGP, table.stamp_BGQ, table.page_BGQ, table.step_1, order,
        slot, victim, source, table.tally_BG4,
        width, slots, head_stride(table.slot_BGP), head_stride(table.stamp_BGQ),
        SLOTS_PAD=padded, CHUNK=256, PAGE=table.page_tokens, ADMIT="source" in given,
        num_warps=min(16, max(4, padded // 256)),
    )  # fmt: skip


def page_admit(page_BGN: Tensor, victim_BGN: Tensor, table: CacheTable) -> None:
    """See the reference."""
    batch, groups, width = page_BGN.shape
    slot_BGP, page_BGQ, stamp_BGQ = table.slot_BGP, table.page_BGQ, table.stamp_BGQ
    assert page_BGN.is_contiguous() and victim_BGN.is_contiguous() and page_BGQ.is_contiguous()
    admit_kernel[(batch * groups,)](
        page_BGN, victim_BGN, slot_BGP, page_BGQ, stamp_BGQ, table.step_1,
        width, stamp_BGQ.shape[-1], head_stride(slot_BGP), head_stride(stamp_BGQ),
        CHUNK=256, num_warps=4,
    )  # fmt: skip


def copy_pages(args: CopyArgs) -> None:
    """As the reference; a GPU reads a pinned pool itself, and torch one in pageable memory."""
    pool_BGSD, cache_BGQD, start_BGN, victim_BGN, page_tokens = args
    if not addressable(pool_BGSD, cache_BGQD.device):
        return naive.copy_pages.reference(*args)
    batch, groups, width = start_BGN.shape
    dim = pool_BGSD.shape[-1]
    assert start_BGN.is_contiguous() and victim_BGN.is_contiguous()
    copy_kernel[(width, batch * groups)](
        pool_BGSD, cache_BGQD, start_BGN, victim_BGN, width,
        head_stride(pool_BGSD), head_stride(cache_BGQD),
        DIM=dim, PAGE_VALUES=page_tokens * dim,
        PAGE_PAD=triton.next_power_of_2(page_tokens * dim), num_warps=4,
    )  # fmt: skip
