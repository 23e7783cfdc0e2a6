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
    """Arguments of ``segmented_kmeans``: S keys of G independent heads.

    ``init`` (unit | raw): whether the first centroids are normalised keys or keys as they are; they
    also lie at other places (``first_keys``). ``edges`` (even | floor): see ``split``.
    ``distance``: ``direction`` assigns by the inner product with normalised centroids (spherical
    k-means), ``euclidean`` by the distance to means.
    """

    k_GSD: Tensor
    num_clusters: int
    num_segments: int
    iterations: int = 10
    final_assign: str = "global"
    init: str = "unit"
    edges: str = "even"
    distance: str = "direction"


class Segment(NamedTuple):
    """Keys ``start <= s < end``, which may join clusters ``first <= c < last``."""

    start: int
    end: int
    first: int
    last: int


Segments = tuple[Segment, ...]
# label_GS of (k_GSD, mean_GD, centroid_GCD, bias_GC, segments): the centroid of the key's segment
# with the largest product with ``k - mean``, less its bias
Assign = Callable[[Tensor, Tensor, Tensor, Tensor, Segments], Tensor]
# (total_GCD, size_GC) of (k_GSD, mean_GD, label_GS, num_clusters): float32 sums of ``k - mean``
Sums = Callable[[Tensor, Tensor, Tensor, int], tuple[Tensor, Tensor]]


def lloyd(args: KMeansArgs, mean_GD: Tensor, assign: Assign, sums: Sums) -> tuple[Tensor, Tensor]:
    """Float32 centroids ``GCD`` and the cluster of each key, int64 ``GS``."""
    k_GSD, num_clusters, segments = args.k_GSD, args.num_clusters, split(args)
    centroid = k_GSD[:, first_keys(args, segments)].float() - mean_GD[:, None]
    euclidean = args.distance == "euclidean"
    if args.init == "unit" and not euclidean:
        centroid = normalize(centroid, dim=-1)
    trained_GSD = k_GSD[:, : segments[-1].end]
    for _ in range(args.iterations - 1):
        label = assign(trained_GSD, mean_GD, centroid, _bias(centroid, euclidean), segments)
        total, size = sums(trained_GSD, mean_GD, label, num_clusters)
        if euclidean:
            centroid = torch.where(
                size[..., None] > 0, total / size.clamp_min(1)[..., None], centroid
            )
            continue
        empty = total.abs().sum(-1, keepdim=True) == 0
        centroid = torch.where(empty, centroid, normalize(total, dim=-1))
    num_keys = k_GSD.shape[1]
    if args.final_assign == "global":
        segments = (Segment(0, num_keys, 0, num_clusters),)
    else:
        segments = (*segments[:-1], segments[-1]._replace(end=num_keys))
    label = assign(k_GSD, mean_GD, centroid, _bias(centroid, euclidean), segments)
    total, size = sums(k_GSD, mean_GD, label, num_clusters)
    centroid = total / size.clamp_min(1)[..., None] + mean_GD[:, None]
    return centroid * (size > 0)[..., None], label.long()


def _bias(centroid_GCD: Tensor, euclidean: bool) -> Tensor:
    """What makes the largest product the smallest distance, where that is asked for."""
    if euclidean:
        return centroid_GCD.square().sum(-1) / 2
    return centroid_GCD.new_zeros(centroid_GCD.shape[:2])


def first_keys(args: KMeansArgs, segments: Segments) -> Tensor:
    """Which keys are the first centroids.

    ``unit``: evenly spaced in each segment, its ends included. ``raw`` (released code): the middles
    of as many equal stretches of all keys as there are clusters, in float32.
    """
    num_keys, device = args.k_GSD.shape[1], args.k_GSD.device
    if args.init == "raw":
        stretch = num_keys / args.num_clusters
        nth = torch.arange(args.num_clusters, dtype=torch.float32, device=device)
        return (nth * stretch + stretch / 2).long().clamp_max(num_keys - 1)
    spread = [
        s.start + torch.linspace(0, s.end - s.start - 1, s.last - s.first, device=device).long()
        for s in segments
    ]
    return torch.cat(spread)


def split(args: KMeansArgs) -> Segments:
    """Contiguous segments of keys, each with its share of the clusters.

    ``even``: near-equal ones that cover all keys. ``floor`` (released code): equal ones, rounded
    down, so that the last few keys take part in the last assignment alone.
    """
    num_keys, segments = args.k_GSD.shape[1], args.num_segments
    assert segments <= args.num_clusters <= num_keys, (
        "more clusters than keys or fewer than segments"
    )
    if args.edges == "floor":
        num_keys = num_keys // segments * segments
    key, cluster = (
        [round(i * total / segments) for i in range(segments + 1)]
        for total in (num_keys, args.num_clusters)
    )
    return tuple(map(Segment, key, key[1:], cluster, cluster[1:]))
