"""Scoring and selection in C++: exact cuts instead of a sort."""

from __future__ import annotations

import ctypes

import torch
from torch import Tensor

from retrobench_kernels import native
from retrobench_kernels.native import unsupported

__all__ = ["cluster_select", "unsupported"]


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
    library: ctypes.CDLL | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """As ``naive.cluster_select``; the sets come in ascending order."""
    library = library or native.library()
    assert library is not None
    batch, heads, dim = q_BHD.shape
    groups, capacity = centroid_BGCD.shape[1:3]
    centroid, size = native.rows(centroid_BGCD), native.table(size_BGC)
    q, exact_bf16 = native.query_as_is(q_BHD)
    num_clusters, retrieved, estimated = map(
        native.int32, (num_clusters_B, retrieved_B, estimated_B)
    )
    best = torch.empty(batch, groups, max_retrieved, dtype=torch.int32)
    rest = torch.empty(batch, groups, max_estimated, dtype=torch.int32)
    logit = torch.empty(batch, heads, capacity)
    stride = (ctypes.c_int64 * 4)(*centroid.stride()[:2], *size.stride()[:2])
    library.retrobench_cluster_select(
        q.data_ptr(), centroid.data_ptr(), size.data_ptr(),
        num_clusters.data_ptr(), retrieved.data_ptr(), estimated.data_ptr(),
        best.data_ptr(), rest.data_ptr(), logit.data_ptr(),
        batch, groups, heads // groups, capacity, max_retrieved, max_estimated, dim,
        scale, softcap, stride, native.DTYPES[centroid.dtype], exact_bf16,
        torch.get_num_threads(),
    )  # fmt: skip
    return best, rest, logit
