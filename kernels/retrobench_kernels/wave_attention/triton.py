"""One split-KV pass over steady, retrieved and estimated zones on a GPU.

The retrieved clusters are first written out as a list of pages (``page_list`` here, or the lookup
of ``page_lru``), because clusters are ragged. Every program then takes each ``splits``-th tile of
retrieved pages, steady tokens and estimated clusters, retrieved pages first: those that miss the
cache come over the bus and should start early. A page is read from the cache or from the pool
(device memory, or pinned host memory addressed directly) through one pointer; a page admitted in
this step is written through to its slot by the program that read it.
"""

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from retrobench_kernels import triton_common as common
from retrobench_kernels.codes import Codes
from retrobench_kernels.triton_common import head_stride
from retrobench_kernels.wave_attention.naive import estimate_rest, merge, value_sums
from retrobench_kernels.wave_attention.triton_rest import named_sum
from retrobench_kernels.wave_attention.zones import Estimation, PageCache, WaveArgs


class PageList(NamedTuple):
    """Pages to attend: the first ``count_BG`` entries (int32) of each row and KV head.

    ``start_BGN`` is where the page begins in the pool, ``tokens_BGN`` how many of its tokens are
    valid, ``source_BGN`` where to read it: a slot >= 0 of the cache; -1, the pool; ``-2 - slot``,
    the pool, and copy it to that slot on the way. ``page_BGN`` is its number, if there is a cache.
    N covers every page of the pool, so that no selection is too long.
    """

    start_BGN: Tensor
    tokens_BGN: Tensor
    source_BGN: Tensor | None
    count_BG: Tensor
    page_BGN: Tensor | None


@common.kernel
def page_list_kernel(
    retrieved_ptr, first_ptr, size_ptr, number_ptr, slot_ptr,
    page_ptr, start_ptr, tokens_ptr, source_ptr, count_ptr,
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
        first = tl.load(first_ptr + index + cluster, mask=valid, other=0)
        number = first
        if CACHED:
            number = tl.load(number_ptr + index + cluster, mask=valid, other=0)
        pages = (size + PAGE - 1) // PAGE
        base = done + tl.cumsum(pages, 0) - pages
        for j in range(0, tl.max(pages, 0), RUN):
            keep = (j + run)[None, :] < pages[:, None]
            at = out + base[:, None] + (j + run)[None, :]
            tl.store(start_ptr + at, first[:, None] + (j + run)[None, :] * PAGE, mask=keep)
            if PAGE > 1:
                left = size[:, None] - (j + run)[None, :] * PAGE
                tl.store(tokens_ptr + at, tl.minimum(left, PAGE), mask=keep)
            if CACHED:
                page = number[:, None] + (j + run)[None, :]
                tl.store(page_ptr + at, page, mask=keep)
                slot = tl.load(slot_ptr + h.to(tl.int64) * slot_stride + page, mask=keep, other=-1)
                tl.store(source_ptr + at, slot, mask=keep)
        done += tl.sum(pages, 0)
    tl.store(count_ptr + h, done)


@triton.jit
def _retrieved_zone(
    q, top, total, acc, k_pool_ptr, v_pool_ptr, k_cache_ptr, v_cache_ptr,
    start_ptr, tokens_ptr, source_ptr, count, split, splits, scale, cap,
    DIM: tl.constexpr, PAGE: tl.constexpr, TILE: tl.constexpr,
    CACHED: tl.constexpr, CAPPED: tl.constexpr,
):  # fmt: skip
    """Every ``splits``-th tile of the page list; pointers are those of this head."""
    lane = tl.arange(0, TILE)
    dim = tl.arange(0, q.shape[1])
    pages: tl.constexpr = TILE // PAGE
    for i in range(split, tl.cdiv(count, pages), splits):
        at = i * pages + lane // PAGE
        keep = at < count
        start = tl.load(start_ptr + at, mask=keep, other=0)
        offset = (start + lane % PAGE).to(tl.int64) * DIM
        k_at = k_pool_ptr + offset
        v_at = v_pool_ptr + offset
        source = tl.full([TILE], -1, tl.int32)
        if CACHED:
            source = tl.load(source_ptr + at, mask=keep, other=-1)
            slot = tl.where(source < -1, -2 - source, source)
            offset = (slot * PAGE + lane % PAGE).to(tl.int64) * DIM
            k_slot = tl.multiple_of(k_cache_ptr + offset, 16)
            v_slot = tl.multiple_of(v_cache_ptr + offset, 16)
            k_at = tl.where(source >= 0, k_slot, k_at)
            v_at = tl.where(source >= 0, v_slot, v_at)
        if PAGE > 1:
            keep = lane % PAGE < tl.load(tokens_ptr + at, mask=keep, other=0)
        # without the hint newer Triton loses the alignment behind `where` and loads 2 bytes a time
        k_at = tl.multiple_of(k_at, 16)
        v_at = tl.multiple_of(v_at, 16)
        mask = keep[:, None] & (dim < DIM)[None, :]
        k = tl.load(k_at[:, None] + dim[None, :], mask=mask, other=0.0)
        v = tl.load(v_at[:, None] + dim[None, :], mask=mask, other=0.0)
        if CACHED:
            admit = mask & (source < -1)[:, None]
            tl.store(k_slot[:, None] + dim[None, :], k, mask=admit)
            tl.store(v_slot[:, None] + dim[None, :], v, mask=admit)
        top, total, acc = common.absorb_tokens(q, top, total, acc, k, v, keep, scale, cap, CAPPED)
    return top, total, acc


@triton.jit
def _estimation_zone(
    top, total, acc, cluster_ptr, logit_ptr, value_sum_ptr, value_scale_ptr, value_mean_ptr,
    size_ptr, width, clusters, split, splits,
    GROUP: tl.constexpr, DIM: tl.constexpr, TILE: tl.constexpr, BITS: tl.constexpr,
    DTYPE: tl.constexpr,
):  # fmt: skip
    """Every ``splits``-th tile of estimated clusters: logits are reused, value sums read."""
    lane = tl.arange(0, TILE)
    row = tl.arange(0, acc.shape[0])
    dim = tl.arange(0, acc.shape[1])
    for i in range(split, tl.cdiv(width, TILE), splits):
        listed = i * TILE + lane < width
        cluster = tl.load(cluster_ptr + i * TILE + lane, mask=listed, other=-1)
        size = tl.load(size_ptr + cluster, mask=cluster >= 0, other=0).to(tl.float32)
        keep = size > 0
        at = logit_ptr + row.to(tl.int64)[:, None] * clusters + cluster[None, :]
        logit = tl.load(at, mask=(row < GROUP)[:, None] & keep[None, :], other=0.0)
        logit = tl.where(keep[None, :], logit, float("-inf"))
        if BITS:
            codes = value_sum_ptr, value_scale_ptr, value_mean_ptr
            value = common.load_coded_rows(*codes, cluster, keep, DIM, acc.shape[1], BITS)
            value = (value * size[:, None]).to(DTYPE)
        else:
            at = tl.multiple_of(value_sum_ptr + cluster.to(tl.int64) * DIM, 16)
            mask = keep[:, None] & (dim < DIM)[None, :]
            value = tl.load(at[:, None] + dim[None, :], mask=mask, other=0.0)
        top, total, acc = common.absorb(top, total, acc, logit, size, value)
    return top, total, acc


@common.kernel
def attend_kernel(
    q_ptr, k_steady_ptr, v_steady_ptr, steady_ptr,
    k_pool_ptr, v_pool_ptr, k_cache_ptr, v_cache_ptr,
    start_ptr, tokens_ptr, source_ptr, count_ptr,
    estimated_ptr, logit_ptr, value_sum_ptr, value_scale_ptr, value_mean_ptr, size_ptr,
    o_ptr, top_ptr, total_ptr,
    steady_stride, pool_stride, cache_stride, page_capacity,
    width_e, clusters, value_sum_stride, value_scale_stride, size_stride, scale, cap, splits,
    HEADS: tl.constexpr, GROUP: tl.constexpr, ROWS: tl.constexpr,
    DIM: tl.constexpr, DIM_PAD: tl.constexpr, PAGE: tl.constexpr, TILE: tl.constexpr,
    CACHED: tl.constexpr, ESTIMATE: tl.constexpr, CAPPED: tl.constexpr, BITS: tl.constexpr,
):  # fmt: skip
    """Partial attention of one KV head's query group over one split of its three zones.

    Tiles of the three zones are numbered through, so that splits differ by one tile at most.
    """
    h = tl.program_id(0)
    split = tl.program_id(1)
    head = h.to(tl.int64)
    q = common.load_group(q_ptr, h, GROUP, ROWS, DIM, DIM_PAD)
    top, total, acc = common.fresh_softmax(ROWS, DIM_PAD)
    count = tl.load(count_ptr + h)
    top, total, acc = _retrieved_zone(
        q, top, total, acc, k_pool_ptr + head * pool_stride, v_pool_ptr + head * pool_stride,
        k_cache_ptr + head * cache_stride, v_cache_ptr + head * cache_stride,
        start_ptr + head * page_capacity, tokens_ptr + head * page_capacity,
        source_ptr + head * page_capacity, count, split, splits, scale, cap,
        DIM, PAGE, TILE, CACHED, CAPPED,
    )  # fmt: skip
    tiles = tl.cdiv(count, TILE // PAGE)
    steady = tl.load(steady_ptr + h // HEADS)
    first = (split + splits - tiles % splits) % splits
    top, total, acc = common.exact_tiles(
        q, top, total, acc, k_steady_ptr + head * steady_stride,
        v_steady_ptr + head * steady_stride, 0, steady,
        first, tl.cdiv(steady, TILE), splits, scale, cap, DIM, TILE, CAPPED,
    )  # fmt: skip
    if ESTIMATE:
        tiles += tl.cdiv(steady, TILE)
        first = (split + splits - tiles % splits) % splits
        top, total, acc = _estimation_zone(
            top, total, acc, estimated_ptr + head * width_e, logit_ptr + head * GROUP * clusters,
            value_sum_ptr + head * value_sum_stride, value_scale_ptr + head * value_scale_stride,
            value_mean_ptr + head * DIM, size_ptr + head * size_stride,
            width_e, clusters, first, splits, GROUP, DIM, TILE, BITS, q.dtype,
        )  # fmt: skip
    common.store_split(o_ptr, top_ptr, total_ptr, top, total, acc, h * splits + split, GROUP, DIM)


def page_list(args: WaveArgs) -> PageList:
    """Pages of the retrieved clusters; without a cache a page is one token."""
    pool, retrieved_BGR, cache = args.pool, args.retrieved_BGR, args.cache
    batch, groups, width = retrieved_BGR.shape
    page_tokens = 1 if cache is None else cache.page_tokens
    capacity = pool.k_BGSD.shape[2] if cache is None else cache.slot_BGP.shape[-1]
    like = {"dtype": torch.int32, "device": retrieved_BGR.device}
    start = torch.empty(batch, groups, capacity, **like)
    tokens = start if page_tokens == 1 else torch.empty_like(start)
    page, source = (None if cache is None else torch.empty_like(start) for _ in "ps")
    number = pool.first_BGC if cache is None else pool.first_page(page_tokens)
    count = torch.empty(batch, groups, **like)
    assert retrieved_BGR.is_contiguous()
    assert head_stride(number) == head_stride(pool.size_BGC) == head_stride(pool.first_BGC)
    page_list_kernel[(batch * groups,)](
        retrieved_BGR, pool.first_BGC, pool.size_BGC, number,
        start if cache is None else cache.slot_BGP, start if page is None else page, start,
        tokens, start if source is None else source, count,
        width, head_stride(pool.size_BGC), 0 if cache is None else head_stride(cache.slot_BGP),
        capacity, PAGE=page_tokens, CACHED=cache is not None,
        CHUNK=256, RUN=16 if page_tokens == 1 else 4, num_warps=4,
    )  # fmt: skip
    return PageList(start, tokens, source, count, page)


def attend_pages(
    args: WaveArgs, pages: PageList, splits: int | None = None
) -> tuple[Tensor, Tensor]:
    """``(o_BHD, lse_BH)`` over the three zones; admits pages as ``pages.source_BGN`` says."""
    q_BHD, steady, pool, retrieved_BGR, scale, estimation, cache, softcap = args
    batch, groups, _, dim = pool.k_BGSD.shape
    rest = None
    if estimation is not None and estimation.total_BGD is not None:
        rest = estimate_rest(estimation, retrieved_BGR, pool.size_BGC, named_sum)
    splits = splits or common.num_splits(batch * groups, q_BHD.device)
    tile, stages = common.tile_tokens(dim, pool.k_BGSD.dtype)
    fast = cache or PageCache(pages.start_BGN, pool.k_BGSD, pool.v_BGSD, 1)
    assert tile % fast.page_tokens == 0
    for k, v in ((steady.k_BGWD, steady.v_BGWD), (pool.k_BGSD, pool.v_BGSD)):
        assert head_stride(k) == head_stride(v)
    part = common.Splits(q_BHD, groups, splits)
    source = pages.start_BGN if pages.source_BGN is None else pages.source_BGN
    zone = estimation or Estimation(pages.start_BGN[..., :0], part.top, pool.v_BGSD)
    sums = zone.value_sum_BGCD
    if isinstance(sums, Codes) and not sums.whole_blocks:
        sums = value_sums(zone, pool.size_BGC)
    vectors, code_scale, mean, bits = common.vector_arguments(sums)
    if estimation is not None:
        assert zone.cluster_BGE.is_contiguous() and zone.logit_BHC.is_contiguous()
    attend_kernel[(batch * groups, splits)](
        q_BHD, steady.k_BGWD, steady.v_BGWD, steady.count_B,
        pool.k_BGSD, pool.v_BGSD, fast.k_BGQD, fast.v_BGQD,
        pages.start_BGN, pages.tokens_BGN, source, pages.count_BG,
        zone.cluster_BGE, zone.logit_BHC, vectors, code_scale, mean, pool.size_BGC,
        part.o, part.top, part.total,
        head_stride(steady.k_BGWD), head_stride(pool.k_BGSD), head_stride(fast.k_BGQD),
        pages.start_BGN.shape[2],
        zone.cluster_BGE.shape[2], zone.logit_BHC.shape[-1], head_stride(vectors),
        head_stride(code_scale), head_stride(pool.size_BGC), scale, softcap, splits,
        HEADS=groups, PAGE=fast.page_tokens, TILE=tile, **common.group_constants(q_BHD, groups),
        CACHED=cache is not None, ESTIMATE=estimation is not None, CAPPED=softcap > 0,
        BITS=bits,
        num_warps=4, num_stages=stages,
    )  # fmt: skip
    out, lse = part.merge(q_BHD)
    if rest is None:
        return out, lse
    out, lse = merge(
        [rest, (out.float().unflatten(1, (groups, -1)), lse.unflatten(1, (groups, -1)))]
    )
    return out.flatten(1, 2).to(q_BHD.dtype), lse.flatten(1, 2)


def wave_attention(args: WaveArgs, splits: int | None = None) -> tuple[Tensor, Tensor]:
    """See the reference."""
    return attend_pages(args, page_list(args), splits)
