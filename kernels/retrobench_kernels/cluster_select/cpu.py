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
    centroid, size = native.rows(centroid_BGCD), size_BGC.to(torch.int32)
    size = size if size.stride(-1) == 1 else size.contiguous()
    q, exact_bf16 = native.query(q_BHD)
    counts = [native.int32(x) for x in (num_clusters_B, retrieved_B, estimated_B)]
    best = torch.empty(batch, groups, max_retrieved, dtype=torch.int32)
    rest = torch.empty(batch, groups, max_estimated, dtype=torch.int32)
    logit = torch.empty(batch, heads, capacity)
    stride = (ctypes.c_int64 * 4)(*centroid.stride()[:2], *size.stride()[:2])
    pointers = map(native.pointer, (q, centroid, size, *counts, best, rest, logit))
    library.retrobench_cluster_select(
        *map(ctypes.c_void_p, pointers),
        ctypes.c_int64(batch),
        ctypes.c_int64(groups),
        ctypes.c_int32(heads // groups),
        ctypes.c_int64(capacity),
        ctypes.c_int64(max_retrieved),
        ctypes.c_int64(max_estimated),
        ctypes.c_int32(dim),
        ctypes.c_float(scale),
        ctypes.c_float(softcap),
        stride,
        ctypes.c_int32(native.DTYPES[centroid.dtype]),
        ctypes.c_int32(exact_bf16),
        ctypes.c_int32(torch.get_num_threads()),
    )
    return best, rest, logit
