"""Segmented spherical k-means in plain torch: the reference and the portable path.

Follows the clustering of RetroInfer's released code (microsoft/RetrievalAttention, 6b1228c):
keys are centred by their mean, segments are clustered apart with normalised centroids, assignment
is by largest inner product, and the last pass may assign over the centroids of all segments.
"""

from __future__ import annotations

import torch
from torch import Tensor

_CHUNK_BYTES = 64 * 1024**2  # of one score matrix


def segmented_kmeans(
    k_GSD: Tensor,
    num_clusters: int,
    num_segments: int,
    iterations: int = 10,
    final_assign: str = "global",
) -> tuple[Tensor, Tensor]:
    """Cluster S keys of G independent heads.

    Returns float32 centroids ``GCD`` (un-normalised means in the original space; zero for empty
    clusters) and the cluster of each key ``GS`` (int64). ``iterations`` counts assignments, the
    last of which is global or stays in its segment (``final_assign``).
    """
    num_keys = k_GSD.shape[1]
    assert num_segments <= num_clusters <= num_keys, (
        "more clusters than keys or fewer than segments"
    )
    mean_G1D = k_GSD.float().mean(1, keepdim=True)
    x_GSD = k_GSD.float() - mean_G1D
    keys_of, clusters_of = _split(num_keys, num_segments), _split(num_clusters, num_segments)
    direction, assigned = [], []
    for (start, end), (first, last) in zip(keys_of, clusters_of, strict=True):
        part = x_GSD[:, start:end]
        spread = torch.linspace(0, end - start - 1, last - first, device=part.device).long()
        centroid = torch.nn.functional.normalize(part[:, spread], dim=-1)
        for _ in range(iterations - 1):
            total, _ = _sums(part, assign(part, centroid), last - first)
            empty = total.abs().sum(-1, keepdim=True) == 0
            normalised = torch.nn.functional.normalize(total, dim=-1)
            centroid = torch.where(empty, centroid, normalised)
        direction.append(centroid)
        if final_assign == "segment":
            assigned.append(assign(part, centroid) + first)
    if final_assign == "segment":
        cluster_GS = torch.cat(assigned, 1)
    else:
        cluster_GS = assign(x_GSD, torch.cat(direction, 1))
    total, size = _sums(x_GSD, cluster_GS, num_clusters)
    centroid = total / size.clamp_min(1)[..., None] + mean_G1D
    return centroid * (size > 0)[..., None], cluster_GS


def assign(x_GSD: Tensor, centroid_GCD: Tensor) -> Tensor:
    """Index of the centroid with the largest inner product, ``GS``, in bounded memory."""
    groups, num_keys, _ = x_GSD.shape
    rows = max(1, _CHUNK_BYTES // (4 * groups * centroid_GCD.shape[1]))
    flipped = centroid_GCD.transpose(-1, -2)
    parts = [(x_GSD[:, s : s + rows] @ flipped).argmax(-1) for s in range(0, num_keys, rows)]
    return torch.cat(parts, 1)


def _sums(x_GSD: Tensor, cluster_GS: Tensor, num_clusters: int) -> tuple[Tensor, Tensor]:
    groups, _, dim = x_GSD.shape
    total = x_GSD.new_zeros(groups, num_clusters, dim)
    total.scatter_add_(1, cluster_GS[..., None].expand(-1, -1, dim), x_GSD)
    size = torch.zeros(groups, num_clusters, dtype=torch.int64, device=x_GSD.device)
    size.scatter_add_(1, cluster_GS, torch.ones_like(cluster_GS))
    return total, size


def _split(total: int, parts: int) -> list[tuple[int, int]]:
    """Near-equal contiguous ranges covering ``range(total)``."""
    edges = [round(i * total / parts) for i in range(parts + 1)]
    return list(zip(edges[:-1], edges[1:], strict=True))
