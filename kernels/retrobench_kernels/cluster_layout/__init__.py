"""Where each token goes when keys and values are stored in cluster order, and its placement."""

from retrobench_kernels.cluster_layout.naive import Layout, cluster_layout, place_tokens

__all__ = ["Layout", "cluster_layout", "place_tokens"]
