"""Scoring and selection in C++: exact cuts instead of a sort."""

import ctypes

import torch
from torch import Tensor

from retrobench_kernels import native
from retrobench_kernels.cluster_select.naive import SelectArgs
from retrobench_kernels.codes import Codes
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
    q_BHD, centroid, size_BGC, *counts_B, scale, max_retrieved, max_estimated = args[:-3]
    batch, heads, dim = q_BHD.shape
    groups, capacity = size_BGC.shape[1:3]
    size, codes = table(size_BGC), ()
    if isinstance(centroid, Codes):
        assert all(x.is_contiguous() for x in centroid)
        bits, codes, vectors, dtype = centroid.bits, centroid[1:], centroid.code_BGCM, 0
    else:
        bits, vectors, dtype = 0, rows(centroid), DTYPES[centroid.dtype]
    q, exact_bf16 = query_as_is(q_BHD)
    counts = [*map(int32, counts_B)]
    limit = None if args.token_limit_B is None else int32(args.token_limit_B)
    bias = None if args.bias_BGC is None else args.bias_BGC.contiguous()
    best = torch.empty(batch, groups, max_retrieved, dtype=torch.int32)
    rest = torch.empty(batch, groups, max_estimated, dtype=torch.int32)
    logit = torch.empty(batch, heads, capacity)
    native.loaded(library).retrobench_cluster_select(
        *addresses(q, vectors), *(addresses(*codes) if codes else (0, 0)),
        *addresses(size, *counts), 0 if limit is None else limit.data_ptr(),
        0 if bias is None else bias.data_ptr(), *addresses(best, rest, logit),
        batch, groups, heads // groups, capacity, max_retrieved, max_estimated, dim,
        scale, args.softcap, strides(vectors, size),
        dtype, exact_bf16, bits, torch.get_num_threads(),
    )  # fmt: skip
    return best, rest, logit
