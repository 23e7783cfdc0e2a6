"""Cluster order of keys and values: aligned offsets and placement."""

from retrobench_kernels.cluster_layout import naive
from retrobench_kernels.cluster_layout.naive import Layout, cluster_layout
from retrobench_kernels.dispatch import op

place_tokens = op(naive.place_tokens)

__all__ = ["Layout", "cluster_layout", "place_tokens"]
