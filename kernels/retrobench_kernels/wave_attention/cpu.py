"""RetroInfer's tripartite attention in C++, in one pass."""

from __future__ import annotations

import ctypes

import torch
from torch import Tensor

from retrobench_kernels import native
from retrobench_kernels.native import unsupported
from retrobench_kernels.wave_attention.zones import Estimation, PageCache, Pool, Steady

__all__ = ["unsupported", "wave_attention"]

_POINTERS = ("q", "k_steady", "v_steady", "k_pool", "v_pool", "k_cache", "v_cache", "value_sum")
_POINTERS += ("steady", "first", "size", "retrieved", "estimated", "slot", "logit", "out", "lse")
_COUNTS = ("B", "G", "group", "D", "R", "E", "C", "page_tokens")
_NUMBERS = ("dtype", "sum_dtype", "dot", "splits", "threads")


class WaveArguments(ctypes.Structure):
    """The struct ``Wave`` of attention.cpp."""

    _fields_ = [
        *((name, ctypes.c_void_p) for name in _POINTERS),
        *((name, ctypes.c_int64) for name in _COUNTS),
        ("stride", ctypes.c_int64 * 20),
        ("scale", ctypes.c_float),
        ("softcap", ctypes.c_float),
        *((name, ctypes.c_int32) for name in _NUMBERS),
    ]


def wave_attention(
    q_BHD: Tensor,
    steady: Steady,
    pool: Pool,
    retrieved_BGR: Tensor,
    scale: float,
    *,
    estimation: Estimation | None = None,
    cache: PageCache | None = None,
    softcap: float = 0.0,
    library: ctypes.CDLL | None = None,
) -> tuple[Tensor, Tensor]:
    """As ``naive.wave_attention``; value sums may be float32 or in the dtype of the pool."""
    library = library or native.library()
    assert library is not None
    batch, heads, dim = q_BHD.shape
    groups, clusters = pool.size_BGC.shape[1:3]
    kv = [native.rows(x) for x in (steady.k_BGWD, steady.v_BGWD, pool.k_BGSD, pool.v_BGSD)]
    dtype = kv[0].dtype
    kv += [None, None] if cache is None else [native.rows(x) for x in (cache.k_BGQD, cache.v_BGQD)]
    assert all(x is None or x.dtype == dtype for x in kv), "one dtype for all keys and values"
    retrieved, count = native.int32(retrieved_BGR), native.int32(steady.count_B)
    estimated = logit = value_sum = None
    if estimation is not None:
        estimated, value_sum = native.int32(estimation.cluster_BGE), estimation.value_sum_BGCD
        logit, value_sum = estimation.logit_BHC.float().contiguous(), native.rows(value_sum)
        assert value_sum.dtype in (torch.float32, dtype)
        assert logit.shape == (batch, heads, clusters)
    slot = None if cache is None else _table(cache.slot_BGP)
    first, size = _table(pool.first_BGC), _table(pool.size_BGC)
    q, exact_bf16 = native.query(q_BHD)
    out, lse = torch.empty(batch, heads, dim), torch.empty(batch, heads)
    tensors = (q, *kv, value_sum, count, first, size, retrieved, estimated, slot, logit, out, lse)
    num_tokens = steady.k_BGWD.shape[2] + 16 * retrieved.shape[2]
    strides = [x.stride()[:2] if x is not None else (0, 0) for x in (*kv, value_sum)]
    strides += [x.stride()[:2] if x is not None else (0, 0) for x in (first, size, slot)]
    arguments = WaveArguments(
        **dict(zip(_POINTERS, map(native.pointer, tensors), strict=True)),
        B=batch,
        G=groups,
        group=heads // groups,
        D=dim,
        R=retrieved.shape[2],
        E=0 if estimated is None else estimated.shape[2],
        C=clusters,
        page_tokens=1 if cache is None else cache.page_tokens,
        stride=(ctypes.c_int64 * 20)(*(step for pair in strides for step in pair)),
        scale=scale,
        softcap=softcap,
        dtype=native.DTYPES[dtype],
        sum_dtype=0 if value_sum is None else native.DTYPES[value_sum.dtype],
        dot=exact_bf16,
        splits=native.splits(batch * groups, num_tokens, per_split=256),
        threads=torch.get_num_threads(),
    )
    library.retrobench_wave(ctypes.byref(arguments))
    return out.to(q_BHD.dtype), lse


def _table(tensor: Tensor) -> Tensor:
    """int32 whose last axis is packed."""
    tensor = tensor.to(torch.int32)
    return tensor if tensor.stride(-1) == 1 else tensor.contiguous()
