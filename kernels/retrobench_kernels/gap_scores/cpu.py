"""Speculated importance of tokens in C++, in one pass over the keys.

Keys are read channel by channel (``key_BGSC`` is best a view of ``BGCS``), so that any number of
channels runs at full width.
"""

from __future__ import annotations

import ctypes

import torch
from torch import Tensor

from retrobench_kernels import native

__all__ = ["gap_scores", "unsupported"]


def unsupported(tensor: Tensor) -> str | None:
    """Why these keys cannot be served, or None."""
    if tensor.dtype not in (torch.float32, torch.bfloat16):
        return f"dtype {tensor.dtype}"
    return None if native.library() is not None else "no library"


def gap_scores(
    q_BGNC: Tensor,
    key_BGSC: Tensor,
    exists_BGS: Tensor,
    scale: float,
    *,
    per_head: bool,
    library: ctypes.CDLL | None = None,
) -> Tensor:
    """As ``naive.gap_scores``."""
    library = library or native.library()
    assert library is not None
    batch, groups, group, channels = q_BGNC.shape
    num_tokens = key_BGSC.shape[2]
    key = key_BGSC if key_BGSC.stride(2) == 1 else key_BGSC.mT.contiguous().mT
    exists = exists_BGS if exists_BGS.stride(2) == 1 else exists_BGS.contiguous()
    q = (q_BGNC.to(key.dtype).float() * scale).contiguous()
    heads = groups * group if per_head else groups
    score = torch.empty(batch, heads, num_tokens)
    stride = (ctypes.c_int64 * 5)(key.stride(0), key.stride(1), key.stride(3), *exists.stride()[:2])
    library.retrobench_gap_scores(
        *map(ctypes.c_void_p, map(native.pointer, (q, key, exists, score))),
        ctypes.c_int64(batch),
        ctypes.c_int64(groups),
        ctypes.c_int64(group),
        ctypes.c_int64(num_tokens),
        ctypes.c_int64(channels),
        stride,
        ctypes.c_int32(per_head),
        ctypes.c_int32(native.DTYPES[key.dtype]),
        ctypes.c_int32(torch.get_num_threads()),
    )
    return score
