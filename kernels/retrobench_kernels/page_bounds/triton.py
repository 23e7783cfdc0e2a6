"""Page extrema and Quest's upper bound on a GPU."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from retrobench_kernels.triton_common import dot, group_rows, head_stride, unsupported

__all__ = ["page_extrema", "unsupported", "upper_bound"]


@triton.jit
def extrema_kernel(
    k_ptr, valid_ptr, low_ptr, high_ptr, pages, page_size, k_stride,
    HEADS: tl.constexpr, DIM: tl.constexpr, DIM_PAD: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    """Element-wise minimum and maximum of one tile of pages."""
    h = tl.program_id(1)
    head = h.to(tl.int64)
    page = tl.program_id(0) * TILE + tl.arange(0, TILE)
    dim = tl.arange(0, DIM_PAD)
    wide = (dim < DIM)[None, :]
    low = tl.full([TILE, DIM_PAD], float("inf"), tl.float32)
    high = tl.full([TILE, DIM_PAD], float("-inf"), tl.float32)
    for i in range(page_size):
        token = page * page_size + i
        valid = (h // HEADS).to(tl.int64) * pages * page_size + token
        keep = tl.load(valid_ptr + valid, mask=page < pages, other=0) != 0
        at = k_ptr + head * k_stride + token.to(tl.int64)[:, None] * DIM + dim[None, :]
        mask = keep[:, None] & wide
        k = tl.load(at, mask=mask, other=0.0).to(tl.float32)
        low = tl.where(mask, tl.minimum(low, k), low)
        high = tl.where(mask, tl.maximum(high, k), high)
    at = (head * pages + page)[:, None] * DIM + dim[None, :]
    mask = (page < pages)[:, None] & wide
    tl.store(low_ptr + at, low.to(low_ptr.dtype.element_ty), mask=mask)
    tl.store(high_ptr + at, high.to(high_ptr.dtype.element_ty), mask=mask)


@triton.jit
def bound_kernel(
    q_ptr, low_ptr, high_ptr, out_ptr, pages, low_stride, high_stride,
    GROUP: tl.constexpr, ROWS: tl.constexpr, DIM: tl.constexpr, DIM_PAD: tl.constexpr,
    TILE: tl.constexpr,
):  # fmt: skip
    """Positive query entries times the maximum plus negative ones times the minimum."""
    h = tl.program_id(1)
    head = h.to(tl.int64)
    page = tl.program_id(0) * TILE + tl.arange(0, TILE)
    dim = tl.arange(0, DIM_PAD)
    row = tl.arange(0, ROWS)
    wide = dim < DIM
    at = q_ptr + (h * GROUP + row)[None, :] * DIM + dim[:, None]
    q = tl.load(at, mask=(row < GROUP)[None, :] & wide[:, None], other=0.0)
    at = page.to(tl.int64)[:, None] * DIM + dim[None, :]
    mask = (page < pages)[:, None] & wide[None, :]
    low = tl.load(low_ptr + head * low_stride + at, mask=mask, other=0.0)
    high = tl.load(high_ptr + head * high_stride + at, mask=mask, other=0.0)
    # float32: the interpreter orders bfloat16 by its bits
    positive = tl.maximum(q.to(tl.float32), 0.0).to(q.dtype)
    negative = tl.minimum(q.to(tl.float32), 0.0).to(q.dtype)
    bound = dot(high, positive) + dot(low, negative)
    at = (h * GROUP + row).to(tl.int64)[None, :] * pages + page[:, None]
    tl.store(out_ptr + at, bound, mask=(page < pages)[:, None] & (row < GROUP)[None, :])


def page_extrema(k_BGSD: Tensor, page_size: int, valid_BS: Tensor) -> tuple[Tensor, Tensor]:
    """See ``naive.py``."""
    batch, groups, num_tokens, dim = k_BGSD.shape
    assert num_tokens % page_size == 0, "whole pages only"
    pages = num_tokens // page_size
    low = torch.empty(batch, groups, pages, dim, dtype=k_BGSD.dtype, device=k_BGSD.device)
    high = torch.empty_like(low)
    valid = valid_BS.expand(batch, -1).contiguous().to(torch.int8)
    tile = 16
    extrema_kernel[(triton.cdiv(pages, tile), batch * groups)](
        k_BGSD, valid, low, high, pages, page_size, head_stride(k_BGSD),
        HEADS=groups, DIM=dim, DIM_PAD=triton.next_power_of_2(dim), TILE=tile, num_warps=4,
    )  # fmt: skip
    return low, high


def upper_bound(q_BHD: Tensor, low_BGCD: Tensor, high_BGCD: Tensor) -> Tensor:
    """See ``naive.py``."""
    batch, heads, dim = q_BHD.shape
    groups, pages = low_BGCD.shape[1:3]
    out = torch.empty(batch, heads, pages, dtype=torch.float32, device=q_BHD.device)
    tile = 32 if dim > 128 or q_BHD.element_size() == 4 else 64
    assert q_BHD.is_contiguous()
    bound_kernel[(triton.cdiv(pages, tile), batch * groups)](
        q_BHD, low_BGCD, high_BGCD, out, pages, head_stride(low_BGCD), head_stride(high_BGCD),
        GROUP=heads // groups, ROWS=group_rows(q_BHD, groups),
        DIM=dim, DIM_PAD=triton.next_power_of_2(dim), TILE=tile, num_warps=4,
    )  # fmt: skip
    return out
