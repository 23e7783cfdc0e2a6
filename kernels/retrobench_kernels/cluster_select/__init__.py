"""Scoring of cluster centroids and selection of the retrieval and estimation zones."""

from retrobench_kernels.cluster_select.naive import cluster_select

__all__ = ["cluster_select"]
