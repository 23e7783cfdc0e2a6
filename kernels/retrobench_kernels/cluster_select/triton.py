"""Score and select on a GPU: logits once, two thresholds by bisection, no sort.

The softmax mass of a cluster is a non-negative float, so its bit pattern orders like an integer:
31 halvings of the integer range give the exact R-th and (R+E)-th largest mass. Both counts of a
round share one reduction. Lists come out in cluster order.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from retrobench_kernels import triton_common as common
from retrobench_kernels.cluster_select.naive import SelectArgs, within_limit
from retrobench_kernels.cluster_select.triton_large import pad, select_large_kernel, sizes
from retrobench_kernels.codes import Codes, decode
from retrobench_kernels.triton_common import head_stride

IN_REGISTERS = 8192  # clusters whose masses one program holds: twice as many would spill


@triton.jit
def _coded_products(
    q_ptr, code_ptr, code_scale_ptr, mean_ptr, cluster, keep,
    GROUP: tl.constexpr, ROWS: tl.constexpr, DIM: tl.constexpr, BITS: tl.constexpr,
):  # fmt: skip
    """Inner products of centroids in codes with the queries of one KV head, ``[clusters, rows]``.

    The codes are whole numbers that every dtype of the queries holds, and sums are float32: nothing
    is rounded. Blocks of 32 dims share a scale in 4 bits; each has 16 dims in the low bits first.
    """
    HALF: tl.constexpr = 16 if BITS == 4 else 32
    row = tl.arange(0, ROWS)
    lane = tl.arange(0, HALF)
    total = tl.zeros([cluster.shape[0], ROWS], tl.float32)
    of_mean = tl.zeros([ROWS], tl.float32)
    for block in tl.static_range(DIM // 32):
        at = cluster[:, None] * (DIM * BITS // 8) + block * HALF + lane[None, :]
        byte = tl.load(code_ptr + at, mask=keep[:, None], other=0).to(tl.int32)
        part = tl.zeros([cluster.shape[0], ROWS], tl.float32)
        for half in tl.static_range(32 // HALF):
            dim = block * 32 + half * HALF + lane
            at = row[None, :] * DIM + dim[:, None]
            q = tl.load(q_ptr + at, mask=(row < GROUP)[None, :], other=0.0)
            number = byte if BITS == 8 else (byte << 28) >> 28 if half == 0 else byte >> 4
            part += common.dot(number.to(tl.float32).to(q.dtype), q)
            mean = tl.load(mean_ptr + dim)
            of_mean += tl.sum(mean[:, None] * q.to(tl.float32), 0)
        at = cluster * (DIM // 32) + block if BITS == 4 else cluster
        scale = tl.load(code_scale_ptr + at, mask=keep, other=0.0)
        total += part * scale.to(tl.float32)[:, None]
    return total + of_mean[None, :]


@common.kernel
def score_kernel(
    q_ptr, centroid_ptr, code_scale_ptr, mean_ptr, size_ptr, bias_ptr, used_ptr, logit_ptr,
    clusters, centroid_stride, code_scale_stride, size_stride, scale, cap,
    HEADS: tl.constexpr, GROUP: tl.constexpr, ROWS: tl.constexpr,
    DIM: tl.constexpr, DIM_PAD: tl.constexpr, TILE: tl.constexpr,
    CAPPED: tl.constexpr, BIASED: tl.constexpr, BITS: tl.constexpr,
):  # fmt: skip
    """Logits of one tile of clusters for the query heads of one KV head; -inf where empty."""
    h = tl.program_id(1)
    used = tl.load(used_ptr + h // HEADS)
    cluster = tl.program_id(0) * TILE + tl.arange(0, TILE)
    row = tl.arange(0, ROWS)
    size = tl.load(size_ptr + h.to(tl.int64) * size_stride + cluster, mask=cluster < used, other=0)
    exists = size > 0
    centroid_ptr += h.to(tl.int64) * centroid_stride
    if BITS:
        code_scale_ptr += h.to(tl.int64) * code_scale_stride
        product = _coded_products(
            q_ptr + h * GROUP * DIM, centroid_ptr, code_scale_ptr, mean_ptr + h * DIM, cluster,
            cluster < used, GROUP, ROWS, DIM, BITS,
        )  # fmt: skip
    else:
        dim = tl.arange(0, DIM_PAD)
        c = common.load_rows(centroid_ptr, cluster, cluster < used, DIM, DIM_PAD)
        at = (h * GROUP + row)[None, :] * DIM + dim[:, None]
        q = tl.load(q_ptr + at, mask=(row < GROUP)[None, :] & (dim < DIM)[:, None], other=0.0)
        if c.dtype != q.dtype:
            c = c.to(tl.float32)
            q = q.to(tl.float32)
        product = common.dot(c, q)
    logit = common.soft_cap(product * scale, cap, CAPPED)
    if BIASED:
        bias = tl.load(bias_ptr + h.to(tl.int64) * clusters + cluster, mask=exists, other=0.0)
        logit += bias.to(tl.float32)[:, None]
    logit = tl.where(exists[:, None], logit, float("-inf"))
    at = (h * GROUP + row).to(tl.int64)[None, :] * clusters + cluster[:, None]
    tl.store(logit_ptr + at, logit, mask=(cluster < clusters)[:, None] & (row < GROUP)[None, :])


@triton.jit
def _probability(logit, count):
    """Softmax over a whole row of logits (-inf: absent) that count more than once."""
    top = tl.maximum(tl.max(logit, 0), -3e38)
    weight = tl.exp(logit - top) * count
    total = tl.sum(weight, 0)
    return weight / tl.where(total > 0, total, 1.0)


@common.kernel
def select_kernel(
    logit_ptr, size_ptr, want_r_ptr, want_e_ptr, retrieved_ptr, estimated_ptr,
    size_stride, clusters, width_r, width_e,
    GROUP: tl.constexpr, CLUSTERS_PAD: tl.constexpr,
    PAD_R: tl.constexpr, PAD_E: tl.constexpr, SIZED: tl.constexpr,
):  # fmt: skip
    """Exact top-R and next-E sets of one KV head, all masses in registers."""
    h = tl.program_id(0)
    cluster = tl.arange(0, CLUSTERS_PAD)
    mass = tl.zeros([CLUSTERS_PAD], tl.float32)
    exists = cluster < 0
    count = sizes(size_ptr + h.to(tl.int64) * size_stride, cluster, clusters, SIZED)
    for g in tl.static_range(GROUP):
        at = (h * GROUP + g).to(tl.int64) * clusters + cluster
        logit = tl.load(logit_ptr + at, mask=cluster < clusters, other=float("-inf"))
        exists = exists | (logit > float("-inf"))
        mass += _probability(logit, count)
    key = tl.where(exists, mass.to(tl.int32, bitcast=True), -1)
    present = tl.sum(exists.to(tl.int32), 0)
    first = tl.minimum(tl.minimum(tl.load(want_r_ptr + h), width_r), present)
    both = first + tl.minimum(tl.load(want_e_ptr + h), width_e)
    both = tl.minimum(both, present)
    low_r = 0
    low_e = 0
    for i in tl.static_range(31):
        bit = 1 << (30 - i)
        # a count fits 15 bits: two of them in one reduction
        packed = (key >= low_r + bit).to(tl.int32) + ((key >= low_e + bit).to(tl.int32) << 16)
        count = tl.sum(packed, 0)
        low_r = tl.where((count & 0xFFFF) >= first, low_r + bit, low_r)
        low_e = tl.where((count >> 16) >= both, low_e + bit, low_e)
    above = (key > low_r).to(tl.int32) + ((key > low_e).to(tl.int32) << 16)
    tie = (key == low_r).to(tl.int32) + ((key == low_e).to(tl.int32) << 16)
    above_count = tl.sum(above, 0)
    rank = tl.cumsum(tie, 0)
    is_r = (key > low_r) | ((key == low_r) & ((rank & 0xFFFF) <= first - (above_count & 0xFFFF)))
    is_e = (key > low_e) | ((key == low_e) & ((rank >> 16) <= both - (above_count >> 16)))
    is_r = is_r & exists
    is_e = is_e & exists & (is_r == 0)
    slot = tl.cumsum(is_r.to(tl.int32) + (is_e.to(tl.int32) << 16), 0)
    tl.store(retrieved_ptr + h * width_r + (slot & 0xFFFF) - 1, cluster, mask=is_r)
    tl.store(estimated_ptr + h * width_e + (slot >> 16) - 1, cluster, mask=is_e)
    pad(retrieved_ptr + h * width_r, first, width_r, PAD_R)
    pad(estimated_ptr + h * width_e, both - first, width_e, PAD_E)


def cluster_select(
    args: SelectArgs, in_registers: int = IN_REGISTERS
) -> tuple[Tensor, Tensor, Tensor]:
    """See the reference; here logits of absent clusters are -inf and lists in cluster order."""
    logit = _scores(args)
    batch, groups, _ = args.size_BGC.shape
    wanted = args.retrieved_B[:, None].expand(-1, groups), args.estimated_B[:, None]
    first_BG, more_BG = wanted[0].int(), wanted[1].expand(-1, groups).int()
    if args.token_limit_B is not None and args.max_retrieved:
        retrieved, _ = _select(args, logit, first_BG, torch.zeros_like(more_BG), in_registers)
        score = (
            logit.unflatten(1, (groups, -1)) + args.size_BGC[:, :, None].float().log()
        ).softmax(-1)
        found = score.sum(2).gather(-1, retrieved.clamp_min(0).long())
        order = found.masked_fill(retrieved < 0, -1).argsort(dim=-1, descending=True, stable=True)
        best = retrieved.gather(-1, order)
        first_BG = within_limit(args, best, args.retrieved_B[:, None, None])[..., 0].int()
    return *_select(args, logit, first_BG, more_BG, in_registers), logit


def _select(
    args: SelectArgs, logit: Tensor, first_BG: Tensor, more_BG: Tensor, in_registers: int
) -> tuple[Tensor, Tensor]:
    """The ``first_BG`` best and the ``more_BG`` next clusters."""
    batch, groups, capacity = args.size_BGC.shape
    size = {"dtype": torch.int32, "device": logit.device}
    retrieved = torch.empty(batch, groups, args.max_retrieved, **size)
    estimated = torch.empty(batch, groups, args.max_estimated, **size)
    lists = (
        first_BG.contiguous(), more_BG.contiguous(), retrieved, estimated,
        head_stride(args.size_BGC), capacity, args.max_retrieved, args.max_estimated,
    )  # fmt: skip
    widths = args.max_retrieved, args.max_estimated
    kernel, constants, warps = select_launch(
        capacity, widths, logit.shape[1] // groups, args.token_limit_B is not None, in_registers
    )
    if "ROWS" in constants:
        key = torch.empty(batch, groups, capacity, **size)
        shape = (batch, groups, 2, constants["ROWS"])
        lists = (key, torch.empty(shape, dtype=torch.float32, device=logit.device), *lists)
    kernel[(batch * groups,)](logit, args.size_BGC, *lists, **constants, num_warps=warps)
    return retrieved, estimated


def select_launch(
    capacity: int,
    widths: tuple[int, int],
    group: int,
    sized: bool,
    in_registers: int = IN_REGISTERS,
) -> tuple[Any, dict[str, Any], int]:
    """Kernel, constants and warps for so many clusters and lists (retrieved, estimated) so wide."""
    pads = [triton.next_power_of_2(max(1, width)) for width in widths]
    constants = {"GROUP": group, "PAD_R": pads[0], "PAD_E": pads[1], "SIZED": sized}
    if capacity <= in_registers:
        padded = triton.next_power_of_2(capacity)
        return select_kernel, {**constants, "CLUSTERS_PAD": padded}, min(16, max(4, padded // 512))
    tile = min(2048, triton.next_power_of_2(in_registers))
    rows = triton.next_power_of_2(group)
    return select_large_kernel, {**constants, "ROWS": rows, "TILE": tile}, 16


def _scores(args: SelectArgs) -> Tensor:
    """Logits of all clusters, float32 ``BHC``."""
    q_BHD, centroid, size, *_ = args
    if isinstance(centroid, Codes) and not centroid.whole_blocks:
        centroid = decode(centroid).to(q_BHD.dtype)
    vectors, code_scale, mean, bits = common.vector_arguments(centroid)
    batch, groups, capacity = size.shape
    assert size.stride(-1) == 1
    bias = None if args.bias_BGC is None else args.bias_BGC.contiguous()
    logit = torch.empty(*q_BHD.shape[:2], capacity, dtype=torch.float32, device=q_BHD.device)
    dim = q_BHD.shape[2]
    tile = 32 if q_BHD.element_size() == 4 else 128 if dim <= 128 else 64
    score_kernel[(triton.cdiv(capacity, tile), batch * groups)](
        q_BHD, vectors, code_scale, mean, size, logit if bias is None else bias,
        args.num_clusters_B, logit, capacity, head_stride(vectors), head_stride(code_scale),
        head_stride(size), args.scale, args.softcap,
        HEADS=groups, TILE=tile, CAPPED=args.softcap > 0, BIASED=bias is not None,
        BITS=bits,
        **common.group_constants(q_BHD, groups), num_warps=4,
    )  # fmt: skip
    return logit
