"""Segmented spherical k-means (RetroInfer's index build)."""

from __future__ import annotations

from torch import Tensor

from retrobench_kernels.dispatch import implementation


def segmented_kmeans(
    k_GSD: Tensor,
    num_clusters: int,
    num_segments: int,
    iterations: int = 10,
    final_assign: str = "global",
) -> tuple[Tensor, Tensor]:
    """Float32 centroids ``GCD`` and the cluster of each key ``GS``; see ``naive.py``."""
    run = implementation("segmented_kmeans", k_GSD).segmented_kmeans
    return run(k_GSD, num_clusters, num_segments, iterations, final_assign)


__all__ = ["segmented_kmeans"]
