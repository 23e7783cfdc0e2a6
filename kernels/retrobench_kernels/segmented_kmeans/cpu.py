"""Segmented k-means with its two passes in C++.

Assignment is a matrix product that keeps only row maxima; keys are centred as they are read, so
that no float32 copy of them exists.
"""

import ctypes

import torch
from torch import Tensor

from retrobench_kernels import native
from retrobench_kernels.cpu_common import DTYPES, addresses, float32, int32, rows
from retrobench_kernels.segmented_kmeans.lloyd import KMeansArgs, Segments, lloyd


def segmented_kmeans(args: KMeansArgs) -> tuple[Tensor, Tensor]:
    """As ``segmented_kmeans``."""
    groups, num_keys, dim = args.k_GSD.shape
    everything = torch.zeros(groups, num_keys, dtype=torch.int32)
    total, _ = cluster_sums(args.k_GSD, torch.zeros(groups, dim), everything, 1)
    return lloyd(args, total[:, 0] / num_keys, assign, cluster_sums)


def assign(
    k_GSD: Tensor, mean_GD: Tensor, centroid_GCD: Tensor, bias_GC: Tensor, segments: Segments
) -> Tensor:
    """See ``lloyd.Assign``; int32."""
    mean, labels = float32(mean_GD), []
    for start, end, first, last in segments:
        k, centroid = rows(k_GSD[:, start:end]), float32(centroid_GCD[:, first:last])
        bias = float32(bias_GC[:, first:last])
        label = torch.empty(k.shape[:2], dtype=torch.int32)
        call = native.function("assign")
        call(*addresses(k, mean, centroid, bias, label), *_sizes(k, last - first))
        labels.append(label + first if first else label)
    return torch.cat(labels, 1)


def cluster_sums(
    k_GSD: Tensor, mean_GD: Tensor, label_GS: Tensor, num_clusters: int
) -> tuple[Tensor, Tensor]:
    """See ``lloyd.Sums``; int32 sizes."""
    k, mean, label = rows(k_GSD), float32(mean_GD), int32(label_GS)
    total = torch.empty(len(k), num_clusters, k.shape[-1])
    size = torch.empty(total.shape[:2], dtype=torch.int32)
    call = native.function("sums")
    call(*addresses(k, mean, label, total, size), *_sizes(k, num_clusters))
    return total, size


def _sizes(k_GSD: Tensor, num_clusters: int) -> tuple:
    """The arguments of both functions after their tensors."""
    groups, tokens, dim = k_GSD.shape
    stride = (ctypes.c_int64 * 1)(k_GSD.stride(0))
    threads = torch.get_num_threads()
    return groups, tokens, num_clusters, dim, stride, DTYPES[k_GSD.dtype], threads
