"""Selection from more clusters than the registers of one program hold.

Masses stay in (L2) memory. The thresholds are found digit by digit: a histogram of the highest
eight bits says in which of them the R-th largest mass is, the next pass looks at those alone, and
four passes give all 31 bits.
"""

import triton
import triton.language as tl

from retrobench_kernels import triton_common as common


@triton.jit
def sizes(size_ptr, cluster, clusters, SIZED: tl.constexpr):
    """How often a cluster counts: once, or for each of its tokens."""
    count = tl.full(cluster.shape, 1.0, tl.float32)
    if SIZED:
        count = tl.load(size_ptr + cluster, mask=cluster < clusters, other=0).to(tl.float32)
    return count


@triton.jit
def pad(list_ptr, count, width, WIDTH_PAD: tl.constexpr):
    """-1 behind the first ``count`` entries of a list."""
    slot = tl.arange(0, WIDTH_PAD)
    tl.store(
        list_ptr + slot,
        tl.full([WIDTH_PAD], -1, tl.int32),
        mask=(slot >= count) & (slot < width),
    )


@triton.jit
def _tile_mass(logit_ptr, top_ptr, count, clusters, cluster,
               GROUP: tl.constexpr, ROWS: tl.constexpr):  # fmt: skip
    """Mass of one tile of clusters as sortable bits (-1: absent), given each head's (max, sum)."""
    mass = tl.zeros(cluster.shape, tl.float32)
    exists = cluster < 0
    for g in tl.static_range(GROUP):
        top = tl.load(top_ptr + g)
        total = tl.load(top_ptr + ROWS + g)
        at = logit_ptr + tl.cast(g, tl.int64) * clusters + cluster
        logit = tl.load(at, mask=cluster < clusters, other=float("-inf"))
        exists = exists | (logit > float("-inf"))
        mass += tl.exp(logit - top) * count / total
    return tl.where(exists, mass.to(tl.int32, bitcast=True), -1)


@triton.jit
def _head_statistics(logit_ptr, size_ptr, top_ptr, clusters, GROUP: tl.constexpr,
                     ROWS: tl.constexpr, TILE: tl.constexpr, SIZED: tl.constexpr):  # fmt: skip
    """Store (max, weighted sum of exponentials) of each query head."""
    lane = tl.arange(0, TILE)
    for g in tl.static_range(GROUP):
        top = -3e38
        total = 0.0
        for start in range(0, clusters, TILE):
            at = logit_ptr + tl.cast(g, tl.int64) * clusters + start + lane
            logit = tl.load(at, mask=start + lane < clusters, other=float("-inf"))
            new = tl.maximum(top, tl.max(logit, 0))
            count = sizes(size_ptr, start + lane, clusters, SIZED)
            total = total * tl.exp(top - new) + tl.sum(tl.exp(logit - new) * count, 0)
            top = new
        tl.store(top_ptr + g, top)
        tl.store(top_ptr + ROWS + g, tl.where(total > 0, total, 1.0))


@triton.jit
def _histograms(key_ptr, clusters, prefix_r, prefix_e, SHIFT: tl.constexpr, BITS: tl.constexpr,
                TILE: tl.constexpr):  # fmt: skip
    """How many keys behind each prefix have which digit."""
    lane = tl.arange(0, TILE)
    count_r = tl.zeros([1 << BITS], tl.int32)
    count_e = tl.zeros([1 << BITS], tl.int32)
    for start in range(0, clusters, TILE):
        key = tl.load(key_ptr + start + lane, mask=start + lane < clusters, other=-1)
        digit = (key >> SHIFT) & ((1 << BITS) - 1)
        above = key >> (SHIFT + BITS)
        count_r += tl.histogram(digit, 1 << BITS, mask=above == prefix_r)
        count_e += tl.histogram(digit, 1 << BITS, mask=above == prefix_e)
    return count_r, count_e


@triton.jit
def _next_digit(count, prefix, wanted, BITS: tl.constexpr):
    """The prefix with its next digit, and how many of the keys behind it are still wanted."""
    larger = tl.sum(count, 0) - tl.cumsum(count, 0)  # keys with a larger digit
    digit = tl.minimum(tl.sum((larger >= wanted).to(tl.int32), 0), (1 << BITS) - 1)
    ahead = tl.sum(tl.where(tl.arange(0, 1 << BITS) == digit, larger, 0), 0)
    return (prefix << BITS) + digit, wanted - ahead


@triton.jit
def _compact(key_ptr, retrieved_ptr, estimated_ptr, clusters, low_r, low_e, ties_r, ties_e,
             TILE: tl.constexpr):  # fmt: skip
    """Write the clusters above each threshold, and as many of those on it as are wanted."""
    lane = tl.arange(0, TILE)
    done_r = 0
    done_e = 0
    for start in range(0, clusters, TILE):
        key = tl.load(key_ptr + start + lane, mask=start + lane < clusters, other=-1)
        tie_r = (key == low_r).to(tl.int32)
        tie_e = (key == low_e).to(tl.int32)
        is_r = (key > low_r) | ((tie_r > 0) & (tl.cumsum(tie_r, 0) <= ties_r))
        is_e = (key > low_e) | ((tie_e > 0) & (tl.cumsum(tie_e, 0) <= ties_e))
        is_e = is_e & (is_r == 0)
        slot_r = done_r + tl.cumsum(is_r.to(tl.int32), 0) - 1
        slot_e = done_e + tl.cumsum(is_e.to(tl.int32), 0) - 1
        tl.store(retrieved_ptr + slot_r, start + lane, mask=is_r)
        tl.store(estimated_ptr + slot_e, start + lane, mask=is_e)
        ties_r -= tl.sum(tie_r, 0)
        ties_e -= tl.sum(tie_e, 0)
        done_r += tl.sum(is_r.to(tl.int32), 0)
        done_e += tl.sum(is_e.to(tl.int32), 0)


@common.kernel
def select_large_kernel(
    logit_ptr, size_ptr, key_ptr, top_ptr, want_r_ptr, want_e_ptr, retrieved_ptr, estimated_ptr,
    size_stride, clusters, width_r, width_e,
    GROUP: tl.constexpr, ROWS: tl.constexpr, TILE: tl.constexpr,
    PAD_R: tl.constexpr, PAD_E: tl.constexpr, SIZED: tl.constexpr,
):  # fmt: skip
    """``select_kernel`` for more clusters than registers hold: masses stay in (L2) memory."""
    h = tl.program_id(0)
    base = h.to(tl.int64)
    logit_ptr += base * GROUP * clusters
    size_ptr += base * size_stride
    key_ptr += base * clusters
    top_ptr += base * 2 * ROWS
    retrieved_ptr += h * width_r
    estimated_ptr += h * width_e
    _head_statistics(logit_ptr, size_ptr, top_ptr, clusters, GROUP, ROWS, TILE, SIZED)
    tl.debug_barrier()
    present = 0
    for start in range(0, clusters, TILE):
        cluster = start + tl.arange(0, TILE)
        count = sizes(size_ptr, cluster, clusters, SIZED)
        key = _tile_mass(logit_ptr, top_ptr, count, clusters, cluster, GROUP, ROWS)
        present += tl.sum((key >= 0).to(tl.int32), 0)
        tl.store(key_ptr + cluster, key, mask=cluster < clusters)
    tl.debug_barrier()
    first = tl.minimum(tl.minimum(tl.load(want_r_ptr + h), width_r), present)
    both = first + tl.minimum(tl.load(want_e_ptr + h), width_e)
    both = tl.minimum(both, present)
    low_r = 0
    low_e = 0
    ties_r = first
    ties_e = both
    for i in tl.static_range(3):
        count_r, count_e = _histograms(key_ptr, clusters, low_r, low_e, 23 - 8 * i, 8, TILE)
        low_r, ties_r = _next_digit(count_r, low_r, ties_r, 8)
        low_e, ties_e = _next_digit(count_e, low_e, ties_e, 8)
    count_r, count_e = _histograms(key_ptr, clusters, low_r, low_e, 0, 7, TILE)
    low_r, ties_r = _next_digit(count_r, low_r, ties_r, 7)
    low_e, ties_e = _next_digit(count_e, low_e, ties_e, 7)
    _compact(
        key_ptr, retrieved_ptr, estimated_ptr, clusters, low_r, low_e, ties_r, ties_e, TILE
    )  # fmt: skip
    pad(retrieved_ptr, first, width_r, PAD_R)
    pad(estimated_ptr, both - first, width_e, PAD_E)
