"""Segmented spherical k-means (RetroInfer's index build)."""

from retrobench_kernels.segmented_kmeans.naive import segmented_kmeans

__all__ = ["segmented_kmeans"]
