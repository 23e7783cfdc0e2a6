"""Full attention of one token in C++, split over the context."""

from __future__ import annotations

import ctypes

import torch
from torch import Tensor

from retrobench_kernels import native
from retrobench_kernels.native import unsupported

__all__ = ["dense_decode", "unsupported"]


def dense_decode(
    q_BHD: Tensor,
    k_BGSD: Tensor,
    v_BGSD: Tensor,
    scale: float,
    *,
    start_B: Tensor | None = None,
    end_B: Tensor | None = None,
    softcap: float = 0.0,
    library: ctypes.CDLL | None = None,
) -> tuple[Tensor, Tensor]:
    """As ``naive.dense_decode``; K and V are read once, in the dtype they have."""
    library = library or native.library()
    assert library is not None and k_BGSD.dtype == v_BGSD.dtype
    batch, heads, dim = q_BHD.shape
    groups, tokens = k_BGSD.shape[1:3]
    k, v = native.rows(k_BGSD), native.rows(v_BGSD)
    q, exact_bf16 = native.query(q_BHD)
    start, end = (None if x is None else native.int32(x) for x in (start_B, end_B))
    out, lse = torch.empty(batch, heads, dim), torch.empty(batch, heads)
    stride = (ctypes.c_int64 * 4)(*k.stride()[:2], *v.stride()[:2])
    library.retrobench_dense(
        *map(ctypes.c_void_p, map(native.pointer, (q, k, v, start, end, out, lse))),
        ctypes.c_int64(batch),
        ctypes.c_int64(groups),
        ctypes.c_int32(heads // groups),
        ctypes.c_int64(tokens),
        ctypes.c_int32(dim),
        ctypes.c_float(scale),
        ctypes.c_float(softcap),
        stride,
        ctypes.c_int32(native.DTYPES[k.dtype]),
        ctypes.c_int32(exact_bf16),
        ctypes.c_int32(native.splits(batch * groups, tokens)),
        ctypes.c_int32(torch.get_num_threads()),
    )
    return out.to(q_BHD.dtype), lse
