"""One split-KV pass over steady, retrieved and estimated zones on a GPU.

The retrieved clusters are first written out as a list of pages (``page_list`` here, or the lookup
of ``page_lru``), because clusters are ragged. Every program then takes each ``splits``-th tile of
retrieved pages, steady tokens and estimated clusters, retrieved pages first: those that miss the
cache come over the bus and should start early. A page is read from the cache or from the pool
(device memory, or pinned host memory addressed directly) through one pointer; a page admitted in
this step is written through to its slot by the program that read it.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from retrobench_kernels.triton_common import (
    NEVER,
    Splits,
    absorb,
    dot,
    group_rows,
    head_stride,
    num_splits,
    soft_cap,
    tile_tokens,
    unsupported,
)
from retrobench_kernels.wave_attention.zones import Estimation, PageCache, Pool, Steady

__all__ = ["PageList", "attend_pages", "page_list", "unsupported", "wave_attention"]


class PageList(NamedTuple):
    """Pages to attend: the first ``count_BG`` entries (int32) of each row and KV head.

    ``page_BGN`` is the page's number in the pool, ``tokens_BGN`` how many of its tokens are valid,
    ``source_BGN`` where to read it: a slot >= 0 of the cache; -1, the pool; ``-2 - slot``, the
    pool, and copy it to that slot on the way. N covers every page of the pool, so that no
    selection is too long.
    """

    page_BGN: Tensor
    tokens_BGN: Tensor
    source_BGN: Tensor | None
    count_BG: Tensor


@triton.jit
def page_list_kernel(
    retrieved_ptr, first_ptr, size_ptr, slot_ptr, page_ptr, tokens_ptr, source_ptr, count_ptr,
    width, index_stride, slot_stride, capacity,
    PAGE: tl.constexpr, CACHED: tl.constexpr, CHUNK: tl.constexpr, RUN: tl.constexpr,
):  # fmt: skip
    """Pages of the retrieved clusters of one KV head, with their token counts and slots."""
    h = tl.program_id(0)
    index = h.to(tl.int64) * index_stride
    out = h.to(tl.int64) * capacity
    lane = tl.arange(0, CHUNK)
    run = tl.arange(0, RUN)
    done = 0
    for start in range(0, width, CHUNK):
        inside = start + lane < width
        cluster = tl.load(retrieved_ptr + h * width + start + lane, mask=inside, other=-1)
        valid = cluster >= 0
        size = tl.load(size_ptr + index + cluster, mask=valid, other=0)
        first = tl.load(first_ptr + index + cluster, mask=valid, other=0) // PAGE
        pages = (size + PAGE - 1) // PAGE
        base = done + tl.cumsum(pages, 0) - pages
        for j in range(0, tl.max(pages, 0), RUN):
            keep = (j + run)[None, :] < pages[:, None]
            page = first[:, None] + (j + run)[None, :]
            at = out + base[:, None] + (j + run)[None, :]
            tl.store(page_ptr + at, page, mask=keep)
            if PAGE > 1:
                left = size[:, None] - (j + run)[None, :] * PAGE
                tl.store(tokens_ptr + at, tl.minimum(left, PAGE), mask=keep)
            if CACHED:
                slot = tl.load(slot_ptr + h.to(tl.int64) * slot_stride + page, mask=keep, other=-1)
                tl.store(source_ptr + at, slot, mask=keep)
        done += tl.sum(pages, 0)
    tl.store(count_ptr + h, done)


@triton.jit
def attend_kernel(
    q_ptr, k_steady_ptr, v_steady_ptr, steady_ptr,
    k_pool_ptr, v_pool_ptr, k_cache_ptr, v_cache_ptr,
    page_ptr, tokens_ptr, source_ptr, count_ptr,
    estimated_ptr, logit_ptr, value_sum_ptr, size_ptr,
    o_ptr, top_ptr, total_ptr,
    steady_stride, pool_stride, cache_stride, page_capacity,
    width_e, clusters, value_sum_stride, size_stride, scale, cap, splits,
    HEADS: tl.constexpr, GROUP: tl.constexpr, ROWS: tl.constexpr,
    DIM: tl.constexpr, DIM_PAD: tl.constexpr, PAGE: tl.constexpr, TILE: tl.constexpr,
    CACHED: tl.constexpr, ESTIMATE: tl.constexpr, CAPPED: tl.constexpr,
):  # fmt: skip
    """Partial attention of one KV head's query group over one split of its three zones."""
    h = tl.program_id(0)
    split = tl.program_id(1)
    head = h.to(tl.int64)
    row = tl.arange(0, ROWS)
    dim = tl.arange(0, DIM_PAD)
    lane = tl.arange(0, TILE)
    wide = dim < DIM
    q_mask = (row < GROUP)[:, None] & wide[None, :]
    q = tl.load(q_ptr + (h * GROUP + row)[:, None] * DIM + dim[None, :], mask=q_mask, other=0.0)
    top = tl.full([ROWS], NEVER, tl.float32)
    total = tl.zeros([ROWS], tl.float32)
    acc = tl.zeros([ROWS, DIM_PAD], tl.float32)
    one = tl.full([TILE], 1.0, tl.float32)

    k_pool_ptr += head * pool_stride
    v_pool_ptr += head * pool_stride
    pages_per_tile: tl.constexpr = TILE // PAGE
    count = tl.load(count_ptr + h)
    tiles = tl.cdiv(count, pages_per_tile)
    for i in range(split, tiles, splits):
        at = i * pages_per_tile + lane // PAGE
        listed = at < count
        at = head * page_capacity + at
        page = tl.load(page_ptr + at, mask=listed, other=0)
        keep = listed
        if PAGE > 1:
            keep = lane % PAGE < tl.load(tokens_ptr + at, mask=listed, other=0)
        offset = (page * PAGE + lane % PAGE).to(tl.int64) * DIM
        k_at = k_pool_ptr + offset
        v_at = v_pool_ptr + offset
        if CACHED:
            source = tl.load(source_ptr + at, mask=listed, other=-1)
            slot = tl.where(source < -1, -2 - source, source)
            offset = head * cache_stride + (slot * PAGE + lane % PAGE).to(tl.int64) * DIM
            k_at = tl.where(source >= 0, k_cache_ptr + offset, k_at)
            v_at = tl.where(source >= 0, v_cache_ptr + offset, v_at)
        # without the hint newer Triton loses the alignment behind `where` and loads 2 bytes a time
        k_at = tl.multiple_of(k_at, 16)
        v_at = tl.multiple_of(v_at, 16)
        mask = keep[:, None] & wide[None, :]
        k = tl.load(k_at[:, None] + dim[None, :], mask=mask, other=0.0)
        v = tl.load(v_at[:, None] + dim[None, :], mask=mask, other=0.0)
        if CACHED:
            admit = mask & (source < -1)[:, None]
            offset = tl.multiple_of(offset, 16)
            tl.store(k_cache_ptr + offset[:, None] + dim[None, :], k, mask=admit)
            tl.store(v_cache_ptr + offset[:, None] + dim[None, :], v, mask=admit)
        logit = soft_cap(dot(q, tl.trans(k)) * scale, cap, CAPPED)
        logit = tl.where(keep[None, :], logit, float("-inf"))
        top, total, acc = absorb(top, total, acc, logit, one, v)

    before = tiles
    steady = tl.load(steady_ptr + h // HEADS)
    k_steady_ptr += head * steady_stride
    v_steady_ptr += head * steady_stride
    tiles = tl.cdiv(steady, TILE)
    for i in range((split + splits - before % splits) % splits, tiles, splits):
        token = i * TILE + lane
        keep = token < steady
        mask = keep[:, None] & wide[None, :]
        at = token[:, None] * DIM + dim[None, :]
        k = tl.load(k_steady_ptr + at, mask=mask, other=0.0)
        v = tl.load(v_steady_ptr + at, mask=mask, other=0.0)
        logit = soft_cap(dot(q, tl.trans(k)) * scale, cap, CAPPED)
        logit = tl.where(keep[None, :], logit, float("-inf"))
        top, total, acc = absorb(top, total, acc, logit, one, v)

    if ESTIMATE:
        before += tiles
        value_sum_ptr += head * value_sum_stride
        size_ptr += head * size_stride
        logit_ptr += head * GROUP * clusters
        for i in range((split + splits - before % splits) % splits, tl.cdiv(width_e, TILE), splits):
            listed = i * TILE + lane < width_e
            at = head * width_e + i * TILE + lane
            cluster = tl.load(estimated_ptr + at, mask=listed, other=-1)
            size = tl.load(size_ptr + cluster, mask=cluster >= 0, other=0).to(tl.float32)
            keep = size > 0
            at = row.to(tl.int64)[:, None] * clusters + cluster[None, :]
            logit = tl.load(logit_ptr + at, mask=(row < GROUP)[:, None] & keep[None, :], other=0.0)
            logit = tl.where(keep[None, :], logit, float("-inf"))
            at = tl.multiple_of(value_sum_ptr + cluster.to(tl.int64) * DIM, 16)
            mask = keep[:, None] & wide[None, :]
            v = tl.load(at[:, None] + dim[None, :], mask=mask, other=0.0)
            top, total, acc = absorb(top, total, acc, logit, size, v)

    out = (h * splits + split) * GROUP + row
    tl.store(top_ptr + out, top, mask=row < GROUP)
    tl.store(total_ptr + out, total, mask=row < GROUP)
    tl.store(o_ptr + out.to(tl.int64)[:, None] * DIM + dim[None, :], acc, mask=q_mask)


def page_list(pool: Pool, retrieved_BGR: Tensor, cache: PageCache | None) -> PageList:
    """Pages of the retrieved clusters; without a cache a page is one token."""
    batch, groups, width = retrieved_BGR.shape
    page_tokens = 1 if cache is None else cache.page_tokens
    capacity = triton.cdiv(pool.k_BGSD.shape[2], page_tokens)
    like = {"dtype": torch.int32, "device": retrieved_BGR.device}
    page = torch.empty(batch, groups, capacity, **like)
    tokens = page if page_tokens == 1 else torch.empty_like(page)
    source = None if cache is None else torch.empty_like(page)
    count = torch.empty(batch, groups, **like)
    assert retrieved_BGR.is_contiguous()
    page_list_kernel[(batch * groups,)](
        retrieved_BGR, pool.first_BGC, pool.size_BGC,
        page if cache is None else cache.slot_BGP, page, tokens,
        page if source is None else source, count,
        width, head_stride(pool.size_BGC), 0 if cache is None else head_stride(cache.slot_BGP),
        capacity, PAGE=page_tokens, CACHED=cache is not None,
        CHUNK=256, RUN=16 if page_tokens == 1 else 4, num_warps=4,
    )  # fmt: skip
    return PageList(page, tokens, source, count)


def attend_pages(
    q_BHD: Tensor,
    steady: Steady,
    pool: Pool,
    pages: PageList,
    scale: float,
    *,
    estimation: Estimation | None = None,
    cache: PageCache | None = None,
    softcap: float = 0.0,
    splits: int | None = None,
) -> tuple[Tensor, Tensor]:
    """``(o_BHD, lse_BH)`` over the three zones; admits pages as ``pages.source_BGN`` says."""
    batch, heads, dim = q_BHD.shape
    groups = pool.k_BGSD.shape[1]
    splits = splits or num_splits(batch * groups, q_BHD.device)
    tile, stages = tile_tokens(dim, pool.k_BGSD.dtype)
    page_tokens = 1 if cache is None else cache.page_tokens
    assert tile % page_tokens == 0 and q_BHD.is_contiguous()
    for k, v in ((steady.k_BGWD, steady.v_BGWD), (pool.k_BGSD, pool.v_BGSD)):
        assert head_stride(k) == head_stride(v)
    part = Splits(q_BHD, groups, splits)
    fast = pool if cache is None else cache
    source = pages.page_BGN if pages.source_BGN is None else pages.source_BGN
    zone = estimation or Estimation(pages.page_BGN[..., :0], part.top, pool.v_BGSD)
    if estimation is not None:
        assert zone.cluster_BGE.is_contiguous() and zone.logit_BHC.is_contiguous()
    attend_kernel[(batch * groups, splits)](
        q_BHD, steady.k_BGWD, steady.v_BGWD, steady.count_B,
        pool.k_BGSD, pool.v_BGSD, fast[0 if cache is None else 1], fast[1 if cache is None else 2],
        pages.page_BGN, pages.tokens_BGN, source, pages.count_BG,
        zone.cluster_BGE, zone.logit_BHC, zone.value_sum_BGCD, pool.size_BGC,
        part.o, part.top, part.total,
        head_stride(steady.k_BGWD), head_stride(pool.k_BGSD),
        0 if cache is None else head_stride(cache.k_BGQD), pages.page_BGN.shape[2],
        zone.cluster_BGE.shape[2], zone.logit_BHC.shape[-1], head_stride(zone.value_sum_BGCD),
        head_stride(pool.size_BGC), scale, softcap, splits,
        HEADS=groups, GROUP=heads // groups, ROWS=group_rows(q_BHD, groups),
        DIM=dim, DIM_PAD=triton.next_power_of_2(dim), PAGE=page_tokens, TILE=tile,
        CACHED=cache is not None, ESTIMATE=estimation is not None, CAPPED=softcap > 0,
        num_warps=4, num_stages=stages,
    )  # fmt: skip
    return part.merge(q_BHD)


def wave_attention(
    q_BHD: Tensor,
    steady: Steady,
    pool: Pool,
    retrieved_BGR: Tensor,
    scale: float,
    *,
    estimation: Estimation | None = None,
    cache: PageCache | None = None,
    softcap: float = 0.0,
    splits: int | None = None,
) -> tuple[Tensor, Tensor]:
    """See ``naive.py``."""
    pages = page_list(pool, retrieved_BGR, cache)
    return attend_pages(
        q_BHD, steady, pool, pages, scale,
        estimation=estimation, cache=cache, softcap=softcap, splits=splits,
    )  # fmt: skip
