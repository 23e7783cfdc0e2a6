"""Assignment and update of segmented spherical k-means on a GPU.

Assignment never forms the keys x centroids matrix: each program keeps a running argmax over tiles
of centroids (the scheme of Flash-KMeans, arXiv 2603.09229). Keys are not centred in memory:
``(k - mean) . c = k . c - mean . c``, so a per-centroid bias does it, and all segments of all heads
run in one launch. The update sorts labels and sums each cluster's rows (no atomics: the result
does not depend on the order of threads).
"""

from functools import cache

import torch
import triton.language as tl
from torch import Tensor

from retrobench_kernels import triton_common as common
from retrobench_kernels.segmented_kmeans.lloyd import KMeansArgs, Segments, lloyd
from retrobench_kernels.triton_common import head_stride


@common.kernel
def assign_kernel(
    k_ptr, centroid_ptr, bias_ptr, range_ptr, label_ptr,
    tokens, clusters, k_stride,
    DIM: tl.constexpr, DIM_PAD: tl.constexpr, KEYS: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    """Best centroid for one tile of keys among those of the tile's range.

    ``range_ptr[tile]`` holds (first key, last key, first centroid, last centroid); argmax over
    centroids, the first of equal ones.
    """
    tile = tl.program_id(0)
    head = tl.program_id(1).to(tl.int64)
    first_key = tl.load(range_ptr + 4 * tile)
    last_key = tl.load(range_ptr + 4 * tile + 1)
    first = tl.load(range_ptr + 4 * tile + 2)
    last = tl.load(range_ptr + 4 * tile + 3)
    token = first_key + tl.arange(0, KEYS)
    dim = tl.arange(0, DIM_PAD)
    lane = tl.arange(0, TILE)
    wide = dim < DIM
    inside = token < last_key
    k = common.load_rows(k_ptr + head * k_stride, token.to(tl.int64), inside, DIM, DIM_PAD)
    best = tl.full([KEYS], float("-inf"), tl.float32)
    label = tl.zeros([KEYS], tl.int32)
    for start in range(first, last, TILE):
        cluster = start + lane
        exists = cluster < last
        column = centroid_ptr + (head * clusters + cluster)[None, :] * DIM + dim[:, None]
        c = tl.load(column, mask=exists[None, :] & wide[:, None], other=0.0)
        bias = tl.load(bias_ptr + head * clusters + cluster, mask=exists, other=float("inf"))
        score = common.dot(k, c) - bias[None, :]
        top = tl.max(score, 1)
        where = tl.where(score == top[:, None], lane[None, :], TILE)
        better = top > best
        label = tl.where(better, start + tl.min(where, 1), label)
        best = tl.where(better, top, best)
    tl.store(label_ptr + head * tokens + token, label, mask=inside)


@common.kernel
def sum_kernel(
    x_ptr, order_ptr, first_ptr, size_ptr, mean_ptr, sum_ptr, tokens, clusters, x_stride,
    DIM: tl.constexpr, DIM_PAD: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    """Sum of one cluster's rows minus their mean, in float32."""
    cluster = tl.program_id(0)
    head = tl.program_id(1).to(tl.int64)
    at = head * clusters + cluster
    first = tl.load(first_ptr + at)
    size = tl.load(size_ptr + at)
    dim = tl.arange(0, DIM_PAD)
    lane = tl.arange(0, TILE)
    wide = dim < DIM
    mean = tl.load(mean_ptr + head * DIM + dim, mask=wide, other=0.0)
    total = tl.zeros([DIM_PAD], tl.float32)
    for start in range(0, size, TILE):
        inside = start + lane < size
        row = tl.load(order_ptr + head * tokens + first + start + lane, mask=inside, other=0)
        x = common.load_rows(x_ptr + head * x_stride, row.to(tl.int64), inside, DIM, DIM_PAD)
        x = x.to(tl.float32) - mean[None, :]
        total += tl.sum(tl.where(inside[:, None], x, 0.0), 0)
    tl.store(sum_ptr + at * DIM + dim, total, mask=wide)


def segmented_kmeans(args: KMeansArgs) -> tuple[Tensor, Tensor]:
    """See the reference. Centroids are rounded to the keys' dtype before each assignment."""
    tiles = cache(lambda segments: key_tiles(segments, args.k_GSD))  # copied to the device once

    def assign_segments(
        k: Tensor, mean: Tensor, centroid: Tensor, bias: Tensor, segments: Segments
    ) -> Tensor:
        return assign(k, mean, centroid, bias, tiles(segments))

    return lloyd(args, args.k_GSD.float().mean(1), assign_segments, cluster_sums)


def assign(
    k_GSD: Tensor, mean_GD: Tensor, centroid_GCD: Tensor, bias_GC: Tensor, tiles_N4: Tensor
) -> Tensor:
    """See ``lloyd.Assign``, with the segments as ``key_tiles``; int32."""
    groups, num_keys, dim = k_GSD.shape
    rounded = centroid_GCD.to(k_GSD.dtype).contiguous()
    bias_GC = (bias_GC + (rounded.float() @ mean_GD[..., None])[..., 0]).contiguous()
    label = torch.empty(groups, num_keys, dtype=torch.int32, device=k_GSD.device)
    keys, tile, stages = _tiles(k_GSD)
    assign_kernel[(len(tiles_N4), groups)](
        k_GSD, rounded, bias_GC, tiles_N4, label,
        num_keys, centroid_GCD.shape[1], head_stride(k_GSD[None]),
        KEYS=keys, TILE=tile, **common.row_constants(dim),
        num_warps=8 if keys == 128 else 4, num_stages=stages,
    )  # fmt: skip
    return label


def cluster_sums(
    k_GSD: Tensor, mean_GD: Tensor, label_GS: Tensor, num_clusters: int
) -> tuple[Tensor, Tensor]:
    """See ``lloyd.Sums``; int64 sizes."""
    groups, num_keys, dim = k_GSD.shape
    size = torch.zeros(groups, num_clusters, dtype=torch.int64, device=k_GSD.device)
    size.scatter_add_(1, label_GS.long(), torch.ones_like(label_GS, dtype=torch.int64))
    order = label_GS.argsort(dim=-1, stable=True)
    first = size.cumsum(-1) - size
    total = torch.empty(groups, num_clusters, dim, dtype=torch.float32, device=k_GSD.device)
    sum_kernel[(num_clusters, groups)](
        k_GSD, order, first, size, mean_GD, total,
        num_keys, num_clusters, head_stride(k_GSD[None]),
        TILE=16, **common.row_constants(dim), num_warps=2,
    )  # fmt: skip
    return total, size


def _tiles(k_GSD: Tensor) -> tuple[int, int, int]:
    """(keys per program, centroids per step, pipeline stages) within registers and memory."""
    if k_GSD.element_size() == 4:  # no tensor cores: products are unrolled into registers
        return 32, 32, 2
    return (128, 64, 3) if k_GSD.shape[-1] <= 128 else (64, 64, 2)


def key_tiles(segments: Segments, k_GSD: Tensor) -> Tensor:
    """(first key, last key, first centroid, last centroid) of every program, int32 ``N4``."""
    keys = _tiles(k_GSD)[0]
    rows = [
        (start, end, first, last)
        for low, end, first, last in segments
        for start in range(low, end, keys)
    ]
    return torch.tensor(rows, dtype=torch.int32).to(k_GSD.device, non_blocking=True)
