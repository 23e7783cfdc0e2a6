"""Segmented spherical k-means (RetroInfer's index build); the reference is in plain torch."""

import torch
from torch import Tensor

from retrobench_kernels.dispatch import op, op_of
from retrobench_kernels.segmented_kmeans.lloyd import KMeansArgs, Segments, lloyd

_CHUNK_BYTES = 64 * 1024**2  # of one score matrix


@op_of(KMeansArgs)
def segmented_kmeans(args: KMeansArgs) -> tuple[Tensor, Tensor]:
    """Cluster S keys of G independent heads.

    Returns float32 centroids ``GCD`` (un-normalised means in the original space; zero for empty
    clusters) and the cluster of each key ``GS`` (int64). ``iterations`` counts assignments, the
    last of which is global or stays in its segment (``final_assign``).
    """
    return lloyd(args, args.k_GSD.float().mean(1), assign, cluster_sums.reference)


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


@op
def cluster_sums(
    k_GSD: Tensor, mean_GD: Tensor, label_GS: Tensor, num_clusters: int
) -> tuple[Tensor, Tensor]:
    """See ``lloyd.Sums``; int64 sizes.

    Summed in the order of positions, not by atomic additions: twice the same is the same.
    """
    label = label_GS.long()
    size = label.new_zeros(len(label), num_clusters).scatter_add_(1, label, torch.ones_like(label))
    order = label.argsort(dim=-1, stable=True)[..., None].expand_as(k_GSD)
    x_GSD = k_GSD.gather(1, order).float() - mean_GD[:, None]
    total = torch.segment_reduce(x_GSD.flatten(0, 1), "sum", lengths=size.flatten())
    return total.unflatten(0, size.shape), size
