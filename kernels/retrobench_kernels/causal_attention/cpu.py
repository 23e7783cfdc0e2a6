"""Causal attention in C++, in bfloat16."""

import ctypes

import torch
from torch import Tensor

from retrobench_kernels import native
from retrobench_kernels.cpu_common import addresses, rows

_TEN = ctypes.c_int64 * 10


def unsupported(tensor: Tensor) -> str | None:
    """Why another form is to be preferred for queries of this dtype and head dim, or None."""
    if tensor.dtype != torch.bfloat16:
        return f"dtype {tensor.dtype}"
    return native.unsupported(tensor) or (
        None if native.flag("causal_pays") else "no bf16 products"
    )


def causal_attention(
    q_BHTD: Tensor, k_BGSD: Tensor, v_BGSD: Tensor, scale: float, window: int | None = None
) -> Tensor:
    """As ``causal_attention``; the output lies in memory token by token."""
    assert {x.dtype for x in (q_BHTD, k_BGSD, v_BGSD)} == {torch.bfloat16}
    (batch, heads, num_q, dim), (groups, num_k) = q_BHTD.shape, k_BGSD.shape[1:3]
    q = q_BHTD if q_BHTD.stride(-1) == 1 else q_BHTD.contiguous()
    k, v = rows(k_BGSD), rows(v_BGSD)
    out = q.new_empty(batch, num_q, heads, dim).transpose(1, 2)
    strides = [step for x in (q, k, v, out) for step in x.stride()[:2]]
    native.function("causal")(
        *addresses(q, k, v, out), batch, groups, heads // groups, num_q, num_k, dim,
        num_k if window is None else window, _TEN(*strides, q.stride(2), out.stride(2)), scale,
        torch.get_num_threads(),
    )  # fmt: skip
    return out
