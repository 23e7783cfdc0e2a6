"""Cluster order of keys and values: aligned offsets and placement."""

from __future__ import annotations

from torch import Tensor

from retrobench_kernels.cluster_layout.naive import Layout, cluster_layout
from retrobench_kernels.dispatch import implementation


def place_tokens(kv_GSD: Tensor, layout: Layout, pool_GSD: Tensor) -> None:
    """Write tokens into the pool at their positions; see ``naive.py``.

    A GPU writes a pinned pool by itself; to pageable memory the tokens are moved first.
    """
    if kv_GSD.device != pool_GSD.device and not pool_GSD.is_pinned():
        layout = layout._replace(target_GS=layout.target_GS.to(pool_GSD.device))
        kv_GSD = kv_GSD.to(pool_GSD.device)
    implementation("cluster_layout", kv_GSD).place_tokens(kv_GSD, layout, pool_GSD)


__all__ = ["Layout", "cluster_layout", "place_tokens"]
