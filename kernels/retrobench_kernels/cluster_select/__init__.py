"""Scoring of cluster centroids and selection of the retrieval and estimation zones."""

from retrobench_kernels.cluster_select.naive import SelectArgs, cluster_select

__all__ = ["SelectArgs", "cluster_select"]
