"""Cluster order of keys and values: aligned offsets and placement."""

from retrobench_kernels.cluster_layout.naive import Layout, cluster_layout, place_tokens

__all__ = ["Layout", "cluster_layout", "place_tokens"]
