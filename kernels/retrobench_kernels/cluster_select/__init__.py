"""Scoring of cluster centroids and selection of the retrieval and estimation zones."""

from __future__ import annotations

from torch import Tensor

from retrobench_kernels.dispatch import implementation


def cluster_select(
    q_BHD: Tensor,
    centroid_BGCD: Tensor,
    size_BGC: Tensor,
    num_clusters_B: Tensor,
    retrieved_B: Tensor,
    estimated_B: Tensor,
    scale: float,
    *,
    max_retrieved: int,
    max_estimated: int,
    softcap: float = 0.0,
) -> tuple[Tensor, Tensor, Tensor]:
    """``(retrieved_BGR, estimated_BGE, logit_BHC)``; see ``naive.py``."""
    run = implementation("cluster_select", q_BHD).cluster_select
    return run(
        q_BHD,
        centroid_BGCD,
        size_BGC,
        num_clusters_B,
        retrieved_B,
        estimated_B,
        scale,
        max_retrieved=max_retrieved,
        max_estimated=max_estimated,
        softcap=softcap,
    )
