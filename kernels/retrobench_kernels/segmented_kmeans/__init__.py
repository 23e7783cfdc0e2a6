"""Segmented spherical k-means (RetroInfer's index build); the reference is in plain torch."""

from retrobench_kernels.segmented_kmeans.naive import cluster_sums, segmented_kmeans

__all__ = ["cluster_sums", "segmented_kmeans"]
