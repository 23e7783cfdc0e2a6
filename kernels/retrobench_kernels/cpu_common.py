"""What the C++ forms share: tensors as C++ reads them, strides, and the number of splits."""

import ctypes
from collections.abc import Iterator

import torch
from torch import Tensor

_FOUR = ctypes.c_int64 * 4
DTYPES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}  # as the C++ code numbers them


def addresses(*tensors: Tensor | None) -> Iterator[int]:
    """Addresses of the tensors' data (0 for None); the caller holds them until C++ returns."""
    return (0 if x is None else x.data_ptr() for x in tensors)


def strides(first: Tensor, second: Tensor) -> ctypes.Array[ctypes.c_int64]:
    """The first two strides of both tensors, in elements."""
    return _FOUR(*first.stride()[:2], *second.stride()[:2])


def rows(tensor: Tensor) -> Tensor:
    """The tensor, with rows of the last two axes packed (a copy only if they are not)."""
    packed = tensor.stride()[-2:] == (tensor.shape[-1], 1)
    return tensor if packed else tensor.contiguous()


def int32(tensor: Tensor) -> Tensor:
    """Contiguous int32; calls no torch operation where it already is."""
    if tensor.dtype == torch.int32 and tensor.is_contiguous():
        return tensor
    return tensor.to(torch.int32).contiguous()


def table(tensor: Tensor) -> Tensor:
    """int32 whose last axis is packed; calls no torch operation where it already is."""
    if tensor.dtype != torch.int32:
        tensor = tensor.to(torch.int32)
    return tensor if tensor.stride(-1) == 1 else tensor.contiguous()


def float32(tensor: Tensor) -> Tensor:
    """Contiguous float32."""
    return tensor.float().contiguous()


def query(q_BHD: Tensor) -> tuple[Tensor, int]:
    """The query as contiguous float32, and whether bf16 dot products lose nothing of it."""
    return float32(q_BHD), int(q_BHD.dtype == torch.bfloat16)


def query_as_is(q_BHD: Tensor) -> tuple[Tensor, int]:
    """Like ``query``, for the kernels that also read bfloat16 (the flag says that it is)."""
    if q_BHD.dtype != torch.bfloat16:
        return query(q_BHD)
    return q_BHD if q_BHD.is_contiguous() else q_BHD.contiguous(), 1


def splits(heads: int, tokens: int, per_split: int = 1024) -> int:
    """Into how many parts to cut each head so that all threads have work."""
    wanted = -(-4 * torch.get_num_threads() // heads)
    return max(1, min(wanted, tokens // per_split))
