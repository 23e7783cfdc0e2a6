"""RetroInfer's tripartite attention in C++, in one pass."""

import struct

import torch
from torch import Tensor

from retrobench_kernels import native
from retrobench_kernels.codes import Codes
from retrobench_kernels.cpu_common import DTYPES, float32, int32, query_as_is, rows, splits, table
from retrobench_kernels.wave_attention.zones import WaveArgs

# The struct ``Wave`` of arguments.h: pointers, counts, strides, floats, ints. Packed in one call:
# field by field a ctypes.Structure costs a tenth of a millisecond when caches are cold.
_WAVE = struct.Struct("@22P9q22q2f6i")


def wave_attention(args: WaveArgs) -> tuple[Tensor, Tensor]:
    """As ``wave_attention``; value sums may be float32 or in the dtype of the pool."""
    batch, heads, dim = args.q_BHD.shape
    dtype = torch.bfloat16 if args.q_BHD.dtype == torch.bfloat16 else torch.float32
    out, lse = torch.empty(batch, heads, dim, dtype=dtype), torch.empty(batch, heads)
    arguments, _kept = pack(args, out, lse)
    native.function("wave")(arguments)
    return (out if dtype == args.q_BHD.dtype else out.to(args.q_BHD.dtype)), lse


def pack(args: WaveArgs, out: Tensor, lse: Tensor) -> tuple[bytes, tuple[Tensor | None, ...]]:
    """The struct, and the tensors that it points to."""
    q_BHD, steady, pool, retrieved_BGR, scale, estimation, cache, softcap = args
    batch, heads, dim = q_BHD.shape
    groups, clusters = pool.size_BGC.shape[1:3]
    kv = [rows(x) for x in (steady.k_BGWD, steady.v_BGWD, pool.k_BGSD, pool.v_BGSD)]
    dtype = kv[0].dtype
    kv += [None, None] if cache is None else [rows(x) for x in (cache.k_BGQD, cache.v_BGQD)]
    assert all(x is None or x.dtype == dtype for x in kv), "one dtype for all keys and values"
    retrieved, count = int32(retrieved_BGR), int32(steady.count_B)
    estimated = logit = value_sum = total = apart = None
    codes, bits = (None, None), 0
    if estimation is not None:
        estimated, logit = int32(estimation.cluster_BGE), float32(estimation.logit_BHC)
        total = None if estimation.total_BGD is None else float32(estimation.total_BGD)
        apart = None if estimation.apart_BGR is None else int32(estimation.apart_BGR)
        value_sum = estimation.value_sum_BGCD
        if isinstance(value_sum, Codes):
            assert all(x.is_contiguous() for x in value_sum)
            bits, codes, value_sum = value_sum.bits, value_sum[1:], value_sum.code_BGCM
        else:
            value_sum = rows(value_sum)
            assert value_sum.dtype in (torch.float32, dtype)
        assert logit.shape == (batch, heads, clusters)
    slot = None if cache is None else table(cache.slot_BGP)
    page = None if cache is None or pool.page_BGC is None else table(pool.page_BGC)
    first, size = table(pool.first_BGC), table(pool.size_BGC)
    q, exact_bf16 = query_as_is(q_BHD)
    tensors = (q, *kv, value_sum, *codes, total, count, first, size, retrieved, estimated, apart)
    tensors = (*tensors, page, slot, logit, out, lse)
    strides: list[int] = []
    for x in (*kv, value_sum, first, size, page, slot):
        strides += (0, 0) if x is None else x.stride()[:2]
    num_tokens = steady.k_BGWD.shape[2] + 16 * retrieved.shape[2]
    arguments = _WAVE.pack(
        *[0 if x is None else x.data_ptr() for x in tensors],
        batch, groups, heads // groups, dim, retrieved.shape[2],
        0 if estimated is None else estimated.shape[2], 0 if apart is None else apart.shape[2],
        clusters,
        1 if cache is None else cache.page_tokens,
        *strides,
        scale, softcap,
        DTYPES[dtype],
        0 if value_sum is None or bits else DTYPES[value_sum.dtype],
        bits,
        exact_bf16,
        splits(batch * groups, num_tokens, per_split=256),
        torch.get_num_threads(),
    )  # fmt: skip
    return arguments, tensors
