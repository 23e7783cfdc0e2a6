"""Split-KV full attention of one token on a GPU: the control with the same inner loop."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from retrobench_kernels.triton_common import (
    NEVER,
    Splits,
    absorb,
    dot,
    group_rows,
    head_stride,
    num_splits,
    soft_cap,
    tile_tokens,
    unsupported,
)

__all__ = ["dense_decode", "unsupported"]


@triton.jit
def dense_kernel(
    q_ptr, k_ptr, v_ptr, start_ptr, end_ptr, o_ptr, top_ptr, total_ptr, k_stride, v_stride,
    scale, cap, splits,
    HEADS: tl.constexpr, GROUP: tl.constexpr, ROWS: tl.constexpr,
    DIM: tl.constexpr, DIM_PAD: tl.constexpr, TILE: tl.constexpr,
    CAPPED: tl.constexpr,
):  # fmt: skip
    """Partial attention of one KV head's query group over one contiguous range of tiles."""
    h = tl.program_id(0)
    split = tl.program_id(1)
    head = h.to(tl.int64)
    start = tl.load(start_ptr + h // HEADS)
    end = tl.load(end_ptr + h // HEADS)
    row = tl.arange(0, ROWS)
    dim = tl.arange(0, DIM_PAD)
    lane = tl.arange(0, TILE)
    wide = dim < DIM
    q_mask = (row < GROUP)[:, None] & wide[None, :]
    q = tl.load(q_ptr + (h * GROUP + row)[:, None] * DIM + dim[None, :], mask=q_mask, other=0.0)
    top = tl.full([ROWS], NEVER, tl.float32)
    total = tl.zeros([ROWS], tl.float32)
    acc = tl.zeros([ROWS, DIM_PAD], tl.float32)
    one = tl.full([TILE], 1.0, tl.float32)
    k_ptr += head * k_stride
    v_ptr += head * v_stride
    # tiles start at a multiple of TILE, so that padding in front does not break alignment
    origin = start // TILE
    per_split = tl.cdiv(tl.cdiv(end, TILE) - origin, splits)
    first = origin + split * per_split
    for i in range(first, tl.minimum(first + per_split, tl.cdiv(end, TILE))):
        token = i * TILE + lane
        keep = (token >= start) & (token < end)
        mask = keep[:, None] & wide[None, :]
        at = token[:, None] * DIM + dim[None, :]
        k = tl.load(k_ptr + at, mask=mask, other=0.0)
        v = tl.load(v_ptr + at, mask=mask, other=0.0)
        logit = soft_cap(dot(q, tl.trans(k)) * scale, cap, CAPPED)
        logit = tl.where(keep[None, :], logit, float("-inf"))
        top, total, acc = absorb(top, total, acc, logit, one, v)
    out = (h * splits + split) * GROUP + row
    tl.store(top_ptr + out, top, mask=row < GROUP)
    tl.store(total_ptr + out, total, mask=row < GROUP)
    tl.store(o_ptr + out.to(tl.int64)[:, None] * DIM + dim[None, :], acc, mask=q_mask)


def dense_decode(
    q_BHD: Tensor,
    k_BGSD: Tensor,
    v_BGSD: Tensor,
    scale: float,
    *,
    start_B: Tensor | None = None,
    end_B: Tensor | None = None,
    softcap: float = 0.0,
    splits: int | None = None,
) -> tuple[Tensor, Tensor]:
    """See ``naive.py``."""
    batch, heads, dim = q_BHD.shape
    groups, num_tokens = k_BGSD.shape[1:3]
    like = {"dtype": torch.int32, "device": q_BHD.device}
    start = torch.zeros(batch, **like) if start_B is None else start_B
    end = torch.full((batch,), num_tokens, **like) if end_B is None else end_B
    splits = splits or num_splits(batch * groups, q_BHD.device)
    tile, stages = tile_tokens(dim, k_BGSD.dtype)
    assert q_BHD.is_contiguous()
    part = Splits(q_BHD, groups, splits)
    dense_kernel[(batch * groups, splits)](
        q_BHD, k_BGSD, v_BGSD, start, end, part.o, part.top, part.total,
        head_stride(k_BGSD), head_stride(v_BGSD), scale, softcap, splits,
        HEADS=groups, GROUP=heads // groups, ROWS=group_rows(q_BHD, groups),
        DIM=dim, DIM_PAD=triton.next_power_of_2(dim), TILE=tile, CAPPED=softcap > 0,
        num_warps=4, num_stages=stages,
    )  # fmt: skip
    return part.merge(q_BHD)
