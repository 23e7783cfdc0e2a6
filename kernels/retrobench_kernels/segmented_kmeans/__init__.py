"""Segmented spherical k-means (RetroInfer's index build)."""

from retrobench_kernels.dispatch import op
from retrobench_kernels.segmented_kmeans import naive

segmented_kmeans = op(naive.segmented_kmeans)

__all__ = ["segmented_kmeans"]
