"""Scoring of cluster centroids and selection of the retrieval and estimation zones."""

from retrobench_kernels.cluster_select import naive
from retrobench_kernels.dispatch import op

cluster_select = op(naive.cluster_select)

__all__ = ["cluster_select"]
