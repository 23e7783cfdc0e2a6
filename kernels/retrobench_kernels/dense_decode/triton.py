"""Split-KV full attention of one token on a GPU: the control with the same inner loop."""

import torch
import triton.language as tl
from torch import Tensor

from retrobench_kernels import triton_common as common
from retrobench_kernels.dense_decode.naive import DenseArgs
from retrobench_kernels.triton_common import head_stride


@common.kernel
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
    q = common.load_group(q_ptr, h, GROUP, ROWS, DIM, DIM_PAD)
    top, total, acc = common.fresh_softmax(ROWS, DIM_PAD)
    # tiles start at a multiple of TILE, so that padding in front does not break alignment
    origin = start // TILE
    last = tl.cdiv(end, TILE)
    share = tl.cdiv(last - origin, splits)
    first = origin + split * share
    top, total, acc = common.exact_tiles(
        q, top, total, acc, k_ptr + head * k_stride, v_ptr + head * v_stride, start, end,
        first, tl.minimum(first + share, last), 1, scale, cap, DIM, TILE, CAPPED,
    )  # fmt: skip
    common.store_split(o_ptr, top_ptr, total_ptr, top, total, acc, h * splits + split, GROUP, DIM)


def dense_decode(args: DenseArgs, splits: int | None = None) -> tuple[Tensor, Tensor]:
    """See the reference."""
    q_BHD, k_BGSD, v_BGSD, scale, start_B, end_B, softcap = args
    batch, groups, num_tokens, dim = k_BGSD.shape
    like = {"dtype": torch.int32, "device": q_BHD.device}
    start = torch.zeros(batch, **like) if start_B is None else start_B
    end = torch.full((batch,), num_tokens, **like) if end_B is None else end_B
    splits = splits or common.num_splits(batch * groups, q_BHD.device)
    tile, stages = common.tile_tokens(dim, k_BGSD.dtype)
    part = common.Splits(q_BHD, groups, splits)
    dense_kernel[(batch * groups, splits)](
        q_BHD, k_BGSD, v_BGSD, start, end, part.o, part.top, part.total,
        head_stride(k_BGSD), head_stride(v_BGSD), scale, softcap, splits,
        HEADS=groups, TILE=tile, CAPPED=softcap > 0, **common.group_constants(q_BHD, groups),
        num_warps=4, num_stages=stages,
    )  # fmt: skip
    return part.merge(q_BHD)
