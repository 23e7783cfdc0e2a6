"""Placement of keys and values in cluster order on a GPU; the order itself is torch's sort."""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from retrobench_kernels.cluster_layout.naive import Layout, cluster_layout
from retrobench_kernels.triton_common import head_stride, unsupported

__all__ = ["Layout", "cluster_layout", "place_tokens", "unsupported"]


@triton.jit
def place_kernel(
    kv_ptr, target_ptr, pool_ptr, tokens, kv_stride, pool_stride,
    DIM: tl.constexpr, DIM_PAD: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    """Copy one tile of tokens to their positions."""
    head = tl.program_id(1).to(tl.int64)
    token = tl.program_id(0) * TILE + tl.arange(0, TILE)
    dim = tl.arange(0, DIM_PAD)
    inside = token < tokens
    target = tl.load(target_ptr + head * tokens + token, mask=inside, other=0)
    mask = inside[:, None] & (dim < DIM)[None, :]
    at = kv_ptr + head * kv_stride + token.to(tl.int64)[:, None] * DIM + dim[None, :]
    row = tl.load(at, mask=mask, other=0.0)
    tl.store(pool_ptr + head * pool_stride + target[:, None] * DIM + dim[None, :], row, mask=mask)


def place_tokens(kv_GSD: Tensor, layout: Layout, pool_GSD: Tensor) -> None:
    """See ``naive.py``; the pool may be pinned host memory, which the GPU writes directly."""
    groups, tokens, dim = kv_GSD.shape
    tile = 32
    place_kernel[(triton.cdiv(tokens, tile), groups)](
        kv_GSD, layout.target_GS.contiguous(), pool_GSD, tokens,
        head_stride(kv_GSD[None]), head_stride(pool_GSD[None]),
        DIM=dim, DIM_PAD=triton.next_power_of_2(dim), TILE=tile, num_warps=4,
    )  # fmt: skip
