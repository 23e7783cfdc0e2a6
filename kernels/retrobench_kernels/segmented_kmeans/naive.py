"""Segmented spherical k-means (RetroInfer's index build); the reference is in plain torch."""

import torch
from torch import Tensor

from retrobench_kernels.dispatch import op_of
from retrobench_kernels.segmented_kmeans.lloyd import KMeansArgs, Segments, lloyd

_CHUNK_BYTES = 64 * 1024**2  # of one score matrix


@op_of(KMeansArgs)
def segmented_kmeans(args: KMeansArgs) -> tuple[Tensor, Tensor]:
    """Cluster S keys of G independent heads.

    Returns float32 centroids ``GCD`` (un-normalised means in the original space; zero for empty
    clusters) and the cluster of each key ``GS`` (int64). ``iterations`` counts assignments, the
    last of which is global or stays in its segment (``final_assign``).
    """
    return lloyd(args, args.k_GSD.float().mean(1), assign, cluster_sums)


def assign(
    k_GSD: Tensor, mean_GD: Tensor, centroid_GCD: Tensor, bias_GC: Tensor, segments: Segments
) -> Tensor:
    """See ``lloyd.Assign``; int64, in bounded memory."""
    parts = []
    for start, end, first, last in segments:
        flipped, bias = centroid_GCD[:, first:last].mT, bias_GC[:, None, first:last]
        rows = max(1, _CHUNK_BYTES // (4 * len(k_GSD) * (last - first)))
        for low in range(start, end, rows):
            x = k_GSD[:, low : min(low + rows, end)].float() - mean_GD[:, None]
            parts.append((x @ flipped - bias).argmax(-1) + first)
    return torch.cat(parts, 1)


def cluster_sums(
    k_GSD: Tensor, mean_GD: Tensor, label_GS: Tensor, num_clusters: int
) -> tuple[Tensor, Tensor]:
    """See ``lloyd.Sums``; int64 sizes."""
    x_GSD = k_GSD.float() - mean_GD[:, None]
    total = x_GSD.new_zeros(len(x_GSD), num_clusters, x_GSD.shape[-1])
    total.scatter_add_(1, label_GS[..., None].expand_as(x_GSD), x_GSD)
    size = label_GS.new_zeros(len(x_GSD), num_clusters)
    return total, size.scatter_add_(1, label_GS, torch.ones_like(label_GS))
