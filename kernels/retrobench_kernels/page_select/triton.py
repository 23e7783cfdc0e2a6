"""Bounds of pages on a GPU in one pass over their minima and maxima; torch ranks them."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from retrobench_kernels import triton_common as common
from retrobench_kernels.page_select.naive import PageSelectArgs
from retrobench_kernels.triton_common import head_stride

TILE = 64  # pages per program


@common.kernel
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
    q = common.load_group(q_ptr, h, GROUP, ROWS, DIM, DIM_PAD).to(tl.float32)
    up = tl.sum(tl.maximum(q, 0.0), 0)
    down = tl.sum(tl.minimum(q, 0.0), 0)
    base = h.to(tl.int64)
    low = common.load_rows(low_ptr + base * low_stride, page, page < used, DIM, DIM_PAD)
    high = common.load_rows(high_ptr + base * high_stride, page, page < used, DIM, DIM_PAD)
    bound = high.to(tl.float32) * up[None, :] + low.to(tl.float32) * down[None, :]
    bound = tl.sum(bound, 1)
    tl.store(total_ptr + base * pages + page, bound, mask=page < pages)


def page_select(args: PageSelectArgs) -> Tensor:
    """See the reference; pages that do not exist yet are never read."""
    q, low, high = args.q_BHD.contiguous(), args.low_BGCD, args.high_BGCD
    batch, groups, pages = low.shape[:3]
    bound = torch.empty(batch, groups, pages, dtype=torch.float32, device=q.device)
    group_bound_kernel[(triton.cdiv(pages, TILE), batch * groups)](
        q, low, high, args.num_pages_B, bound, pages, head_stride(low), head_stride(high),
        HEADS=groups, TILE=TILE, **common.group_constants(q, groups, least=1), num_warps=4,
    )  # fmt: skip
    return args.best(bound)
