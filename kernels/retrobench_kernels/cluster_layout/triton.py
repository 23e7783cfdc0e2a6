"""Placement of keys and values in cluster order on a GPU; the order itself is torch's sort."""

import triton
import triton.language as tl
from torch import Tensor

from retrobench_kernels import triton_common as common
from retrobench_kernels.cluster_layout import naive
from retrobench_kernels.cluster_layout.naive import Layout
from retrobench_kernels.triton_common import head_stride


@common.kernel
def place_kernel(
    kv_ptr, target_ptr, pool_ptr, tokens, kv_stride, pool_stride,
    DIM: tl.constexpr, DIM_PAD: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    """Copy one tile of tokens to their positions."""
    head = tl.program_id(1).to(tl.int64)
    token = tl.program_id(0) * TILE + tl.arange(0, TILE)
    inside = token < tokens
    target = tl.load(target_ptr + head * tokens + token, mask=inside, other=0)
    row = common.load_rows(kv_ptr + head * kv_stride, token.to(tl.int64), inside, DIM, DIM_PAD)
    common.store_rows(pool_ptr + head * pool_stride, target, inside, row, DIM)


def place_tokens(kv_GSD: Tensor, layout: Layout, pool_GSD: Tensor) -> None:
    """See the reference; the GPU writes a pinned pool itself, and torch one in pageable memory."""
    if not common.addressable(pool_GSD, kv_GSD.device):
        return naive.place_tokens.reference(kv_GSD, layout, pool_GSD)
    groups, tokens, dim = kv_GSD.shape
    tile = 32
    place_kernel[(triton.cdiv(tokens, tile), groups)](
        kv_GSD, layout.target_GS.contiguous(), pool_GSD, tokens,
        head_stride(kv_GSD[None]), head_stride(pool_GSD[None]),
        TILE=tile, **common.row_constants(dim), num_warps=4,
    )  # fmt: skip
