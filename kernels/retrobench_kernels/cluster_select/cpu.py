"""Scoring and selection in C++: exact cuts instead of a sort."""

import struct

import torch
from torch import Tensor

from retrobench_kernels import native
from retrobench_kernels.cluster_select.naive import SelectArgs
from retrobench_kernels.codes import Codes, LaneCodes, to_lanes
from retrobench_kernels.cpu_common import DTYPES, int32, query_as_is, rows, strides, table

# The struct ``Select`` of arguments.h: pointers, counts, strides, floats, ints.
_SELECT = struct.Struct("@13P7q4q2f4i")


def cluster_select(args: SelectArgs) -> tuple[Tensor, Tensor, Tensor]:
    """As ``cluster_select``; the sets come in ascending order."""
    batch, groups, capacity = args.size_BGC.shape
    best = torch.empty(batch, groups, args.max_retrieved, dtype=torch.int32)
    rest = torch.empty(batch, groups, args.max_estimated, dtype=torch.int32)
    logit = torch.empty(batch, args.q_BHD.shape[1], capacity)
    arguments, _kept = pack(args, (best, rest, logit))
    native.function("cluster_select")(arguments)
    return best, rest, logit


def pack(
    args: SelectArgs, results: tuple[Tensor, Tensor, Tensor]
) -> tuple[bytes, tuple[Tensor | None, ...]]:
    """The struct, and the tensors that it points to."""
    q_BHD, centroid, size_BGC, *counts_B, scale, max_retrieved, max_estimated = args[:-3]
    batch, heads, dim = q_BHD.shape
    groups, capacity = size_BGC.shape[1:3]
    size, bits, codes = table(size_BGC), 0, (None, None)
    if isinstance(centroid, Codes):
        centroid = to_lanes(centroid)
    if isinstance(centroid, LaneCodes):
        assert all(x.is_contiguous() for x in centroid)
        bits, codes, vectors, dtype = centroid.bits, centroid[1:], centroid.word_BGKEW, 0
    else:
        vectors, dtype = rows(centroid), DTYPES[centroid.dtype]
    q, exact_bf16 = query_as_is(q_BHD)
    limit = None if args.token_limit_B is None else int32(args.token_limit_B)
    bias = None if args.bias_BGC is None else args.bias_BGC.contiguous()
    tensors = (q, vectors, *codes, size, *map(int32, counts_B), limit, bias, *results)
    arguments = _SELECT.pack(
        *[0 if x is None else x.data_ptr() for x in tensors],
        batch, groups, heads // groups, capacity, max_retrieved, max_estimated, dim,
        *strides(vectors, size), scale, args.softcap,
        dtype, exact_bf16, bits, torch.get_num_threads(),
    )  # fmt: skip
    return arguments, tensors
