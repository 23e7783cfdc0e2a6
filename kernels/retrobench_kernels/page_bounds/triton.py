"""Page extrema and Quest's upper bound on a GPU."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from retrobench_kernels import triton_common as common
from retrobench_kernels.triton_common import head_stride


@common.kernel
def extrema_kernel(
    k_ptr, valid_ptr, low_ptr, high_ptr, pages, page_size, k_stride,
    HEADS: tl.constexpr, DIM: tl.constexpr, DIM_PAD: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    """Element-wise minimum and maximum of one tile of pages."""
    h = tl.program_id(1)
    head = h.to(tl.int64)
    page = tl.program_id(0) * TILE + tl.arange(0, TILE)
    low = tl.full([TILE, DIM_PAD], float("inf"), tl.float32)
    high = tl.full([TILE, DIM_PAD], float("-inf"), tl.float32)
    for i in range(page_size):
        token = page * page_size + i
        valid = (h // HEADS).to(tl.int64) * pages * page_size + token
        keep = tl.load(valid_ptr + valid, mask=page < pages, other=0) != 0
        row = common.load_rows(k_ptr + head * k_stride, token.to(tl.int64), keep, DIM, DIM_PAD)
        k = row.to(tl.float32)
        low = tl.where(keep[:, None], tl.minimum(low, k), low)
        high = tl.where(keep[:, None], tl.maximum(high, k), high)
    at = head * pages + page
    common.store_rows(low_ptr, at, page < pages, low.to(low_ptr.dtype.element_ty), DIM)
    common.store_rows(high_ptr, at, page < pages, high.to(high_ptr.dtype.element_ty), DIM)


@common.kernel
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
    exists = page < pages
    low = common.load_rows(low_ptr + head * low_stride, page.to(tl.int64), exists, DIM, DIM_PAD)
    high = common.load_rows(high_ptr + head * high_stride, page.to(tl.int64), exists, DIM, DIM_PAD)
    # float32: the interpreter orders bfloat16 by its bits
    positive = tl.maximum(q.to(tl.float32), 0.0).to(q.dtype)
    negative = tl.minimum(q.to(tl.float32), 0.0).to(q.dtype)
    bound = common.dot(high, positive) + common.dot(low, negative)
    at = (h * GROUP + row).to(tl.int64)[None, :] * pages + page[:, None]
    tl.store(out_ptr + at, bound, mask=exists[:, None] & (row < GROUP)[None, :])


def page_extrema(k_BGSD: Tensor, page_size: int, valid_BS: Tensor) -> tuple[Tensor, Tensor]:
    """See the reference."""
    batch, groups, num_tokens, dim = k_BGSD.shape
    assert num_tokens % page_size == 0, "whole pages only"
    pages = num_tokens // page_size
    low = torch.empty(batch, groups, pages, dim, dtype=k_BGSD.dtype, device=k_BGSD.device)
    high = torch.empty_like(low)
    valid = valid_BS.expand(batch, -1).contiguous().to(torch.int8)
    tile = 16
    extrema_kernel[(triton.cdiv(pages, tile), batch * groups)](
        k_BGSD, valid, low, high, pages, page_size, head_stride(k_BGSD),
        HEADS=groups, TILE=tile, **common.row_constants(dim), num_warps=4,
    )  # fmt: skip
    return low, high


def upper_bound(q_BHD: Tensor, low_BGCD: Tensor, high_BGCD: Tensor) -> Tensor:
    """See the reference."""
    batch, heads, dim = q_BHD.shape
    groups, pages = low_BGCD.shape[1:3]
    out = torch.empty(batch, heads, pages, dtype=torch.float32, device=q_BHD.device)
    tile = 32 if dim > 128 or q_BHD.element_size() == 4 else 64
    bound_kernel[(triton.cdiv(pages, tile), batch * groups)](
        q_BHD, low_BGCD, high_BGCD, out, pages, head_stride(low_BGCD), head_stride(high_BGCD),
        TILE=tile, **common.group_constants(q_BHD, groups), num_warps=4,
    )  # fmt: skip
    return out
