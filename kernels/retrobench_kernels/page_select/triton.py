"""Bounds of pages on a GPU in one pass over their minima and maxima; torch ranks them."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from retrobench_kernels.page_select.naive import best_pages
from retrobench_kernels.triton_common import head_stride, load_group, unsupported

__all__ = ["page_select", "unsupported"]

TILE = 64  # pages per program


@triton.jit
def group_bound_kernel(
    q_ptr, low_ptr, high_ptr, used_ptr, total_ptr, pages, low_stride, high_stride,
    HEADS: tl.constexpr, GROUP: tl.constexpr, ROWS: tl.constexpr,
    DIM: tl.constexpr, DIM_PAD: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    """Bounds of one tile of pages, summed over the query heads of one KV head.

    The sum is linear in the positive and in the negative parts of the queries: two dot products a
    page, whatever the group.
    """
    h = tl.program_id(1)
    used = tl.load(used_ptr + h // HEADS)
    page = tl.program_id(0) * TILE + tl.arange(0, TILE)
    dim = tl.arange(0, DIM_PAD)
    q = load_group(q_ptr, h, GROUP, ROWS, DIM, DIM_PAD).to(tl.float32)
    up = tl.sum(tl.maximum(q, 0.0), 0)
    down = tl.sum(tl.minimum(q, 0.0), 0)
    mask = (page < used)[:, None] & (dim < DIM)[None, :]
    at = page[:, None] * DIM + dim[None, :]
    base = h.to(tl.int64)
    low = tl.load(low_ptr + base * low_stride + at, mask=mask, other=0.0).to(tl.float32)
    high = tl.load(high_ptr + base * high_stride + at, mask=mask, other=0.0).to(tl.float32)
    bound = tl.sum(high * up[None, :] + low * down[None, :], 1)
    tl.store(total_ptr + base * pages + page, bound, mask=page < pages)


def page_select(
    q_BHD: Tensor,
    low_BGCD: Tensor,
    high_BGCD: Tensor,
    num_pages_B: Tensor,
    selected_B: Tensor,
    *,
    max_selected: int,
    newest: bool,
) -> Tensor:
    """See ``naive.py``; pages that do not exist yet are never read."""
    heads, dim = q_BHD.shape[1:]
    batch, groups, pages = low_BGCD.shape[:3]
    group = heads // groups
    bound = torch.empty(batch, groups, pages, dtype=torch.float32, device=q_BHD.device)
    group_bound_kernel[(triton.cdiv(pages, TILE), batch * groups)](
        q_BHD.contiguous(), low_BGCD, high_BGCD, num_pages_B, bound,
        pages, head_stride(low_BGCD), head_stride(high_BGCD),
        HEADS=groups, GROUP=group, ROWS=triton.next_power_of_2(group),
        DIM=dim, DIM_PAD=triton.next_power_of_2(dim), TILE=TILE, num_warps=4,
    )  # fmt: skip
    counts = num_pages_B, selected_B
    return best_pages(bound, *counts, max_selected=max_selected, newest=newest)
