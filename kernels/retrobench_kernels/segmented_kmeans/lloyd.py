"""The iterations of segmented spherical k-means, whatever computes their two passes.

Follows the clustering of RetroInfer's released code (microsoft/RetrievalAttention, 6b1228c):
keys are centred by their mean, segments are clustered apart with normalised centroids, assignment
is by largest inner product, and the last pass may assign over the centroids of all segments.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import normalize


class KMeansArgs(NamedTuple):
    """Arguments of ``segmented_kmeans``: S keys of G independent heads."""

    k_GSD: Tensor
    num_clusters: int
    num_segments: int
    iterations: int = 10
    final_assign: str = "global"


class Segment(NamedTuple):
    """Keys ``start <= s < end``, which may join clusters ``first <= c < last``."""

    start: int
    end: int
    first: int
    last: int


Segments = tuple[Segment, ...]
# label_GS of (k_GSD, mean_GD, centroid_GCD, segments): the centroid of the key's segment with the
# largest product with ``k - mean``
Assign = Callable[[Tensor, Tensor, Tensor, Segments], Tensor]
# (total_GCD, size_GC) of (k_GSD, mean_GD, label_GS, num_clusters): float32 sums of ``k - mean``
Sums = Callable[[Tensor, Tensor, Tensor, int], tuple[Tensor, Tensor]]


def lloyd(args: KMeansArgs, mean_GD: Tensor, assign: Assign, sums: Sums) -> tuple[Tensor, Tensor]:
    """Float32 centroids ``GCD`` and the cluster of each key, int64 ``GS``."""
    k_GSD, num_clusters, _, iterations, final_assign = args
    segments = split(args)
    spread = [
        s.start + torch.linspace(0, s.end - s.start - 1, s.last - s.first, device=k_GSD.device)
        .long() for s in segments
    ]  # fmt: skip
    centroid = normalize(k_GSD[:, torch.cat(spread)].float() - mean_GD[:, None], dim=-1)
    for _ in range(iterations - 1):
        label = assign(k_GSD, mean_GD, centroid, segments)
        total, _ = sums(k_GSD, mean_GD, label, num_clusters)
        empty = total.abs().sum(-1, keepdim=True) == 0
        centroid = torch.where(empty, centroid, normalize(total, dim=-1))
    if final_assign == "global":
        segments = (Segment(0, k_GSD.shape[1], 0, num_clusters),)
    label = assign(k_GSD, mean_GD, centroid, segments)
    total, size = sums(k_GSD, mean_GD, label, num_clusters)
    centroid = total / size.clamp_min(1)[..., None] + mean_GD[:, None]
    return centroid * (size > 0)[..., None], label.long()


def split(args: KMeansArgs) -> Segments:
    """Near-equal contiguous segments of keys, each with its near-equal share of the clusters."""
    num_keys, segments = args.k_GSD.shape[1], args.num_segments
    assert segments <= args.num_clusters <= num_keys, (
        "more clusters than keys or fewer than segments"
    )
    key, cluster = (
        [round(i * total / segments) for i in range(segments + 1)]
        for total in (num_keys, args.num_clusters)
    )
    return tuple(map(Segment, key, key[1:], cluster, cluster[1:]))
