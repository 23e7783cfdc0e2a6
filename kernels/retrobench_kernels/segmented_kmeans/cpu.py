"""Segmented k-means with its two passes in C++.

Assignment is a matrix product that keeps only row maxima; keys are centred as they are read, so
that no float32 copy of them exists.
"""

from __future__ import annotations

import ctypes

import torch
from torch import Tensor
from torch.nn.functional import normalize

from retrobench_kernels import native
from retrobench_kernels.native import unsupported
from retrobench_kernels.segmented_kmeans.naive import _split

__all__ = ["assign", "cluster_sums", "segmented_kmeans", "unsupported"]


def segmented_kmeans(
    k_GSD: Tensor,
    num_clusters: int,
    num_segments: int,
    iterations: int = 10,
    final_assign: str = "global",
) -> tuple[Tensor, Tensor]:
    """As ``naive.segmented_kmeans``."""
    groups, num_keys, dim = k_GSD.shape
    everything = torch.zeros(groups, num_keys, dtype=torch.int32)
    total, _ = cluster_sums(k_GSD, torch.zeros(groups, dim), everything, 1)
    mean_GD = total[:, 0] / num_keys
    direction, assigned = [], []
    keys_of, clusters_of = _split(num_keys, num_segments), _split(num_clusters, num_segments)
    for (start, end), (first, last) in zip(keys_of, clusters_of, strict=True):
        part = k_GSD[:, start:end]
        spread = torch.linspace(0, end - start - 1, last - first).long()
        centroid = normalize(part[:, spread].float() - mean_GD[:, None], dim=-1)
        for _ in range(iterations - 1):
            label = assign(part, mean_GD, centroid)
            total, size = cluster_sums(part, mean_GD, label, last - first)
            centroid = torch.where(size[..., None] > 0, normalize(total, dim=-1), centroid)
        direction.append(centroid)
        if final_assign == "segment":
            assigned.append(assign(part, mean_GD, centroid) + first)
    if final_assign == "segment":
        label = torch.cat(assigned, 1)
    else:
        label = assign(k_GSD, mean_GD, torch.cat(direction, 1))
    total, size = cluster_sums(k_GSD, mean_GD, label, num_clusters)
    centroid = total / size.clamp_min(1)[..., None] + mean_GD[:, None]
    return centroid * (size > 0)[..., None], label.long()


def assign(k_GSD: Tensor, mean_GD: Tensor, centroid_GCD: Tensor) -> Tensor:
    """Index of the centroid with the largest product with ``k - mean``, ``GS`` int32."""
    k, mean, centroid = native.rows(k_GSD), _float(mean_GD), _float(centroid_GCD)
    groups, tokens, dim = k.shape
    label = torch.empty(groups, tokens, dtype=torch.int32)
    _run("retrobench_assign", k, (mean, centroid, label), (groups, tokens, centroid.shape[1], dim))
    return label


def cluster_sums(
    k_GSD: Tensor, mean_GD: Tensor, cluster_GS: Tensor, num_clusters: int
) -> tuple[Tensor, Tensor]:
    """Sum of ``k - mean`` per cluster, ``GCD`` float32, and sizes ``GC`` int32."""
    k, mean, label = native.rows(k_GSD), _float(mean_GD), native.int32(cluster_GS)
    groups, tokens, dim = k.shape
    total = torch.empty(groups, num_clusters, dim)
    size = torch.empty(groups, num_clusters, dtype=torch.int32)
    sizes = (groups, tokens, num_clusters, dim)
    _run("retrobench_sums", k, (mean, label, total, size), sizes)
    return total, size


def _run(name: str, k: Tensor, tensors: tuple[Tensor, ...], sizes: tuple[int, ...]) -> None:
    library = native.library()
    assert library is not None
    groups, tokens, clusters, dim = sizes
    getattr(library, name)(
        *map(ctypes.c_void_p, map(native.pointer, (k, *tensors))),
        ctypes.c_int64(groups),
        ctypes.c_int64(tokens),
        ctypes.c_int64(clusters),
        ctypes.c_int32(dim),
        (ctypes.c_int64 * 1)(k.stride(0)),
        ctypes.c_int32(native.DTYPES[k.dtype]),
        ctypes.c_int32(torch.get_num_threads()),
    )


def _float(tensor: Tensor) -> Tensor:
    return tensor.float().contiguous()
