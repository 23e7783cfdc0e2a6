"""Scoring and selection in C++: exact cuts instead of a sort."""

import ctypes

import torch
from torch import Tensor

from retrobench_kernels import native
from retrobench_kernels.cluster_select.naive import SelectArgs
from retrobench_kernels.cpu_common import (
    DTYPES,
    addresses,
    int32,
    query_as_is,
    rows,
    strides,
    table,
)


def cluster_select(
    args: SelectArgs, library: ctypes.CDLL | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """As ``cluster_select``; the sets come in ascending order."""
    q_BHD, centroid_BGCD, size_BGC, *counts_B, scale, max_retrieved, max_estimated, softcap = args
    batch, heads, dim = q_BHD.shape
    groups, capacity = centroid_BGCD.shape[1:3]
    centroid, size = rows(centroid_BGCD), table(size_BGC)
    q, exact_bf16 = query_as_is(q_BHD)
    counts = [*map(int32, counts_B)]
    best = torch.empty(batch, groups, max_retrieved, dtype=torch.int32)
    rest = torch.empty(batch, groups, max_estimated, dtype=torch.int32)
    logit = torch.empty(batch, heads, capacity)
    native.loaded(library).retrobench_cluster_select(
        *addresses(q, centroid, size, *counts, best, rest, logit),
        batch, groups, heads // groups, capacity, max_retrieved, max_estimated, dim,
        scale, softcap, strides(centroid, size),
        DTYPES[centroid.dtype], exact_bf16, torch.get_num_threads(),
    )  # fmt: skip
    return best, rest, logit
