"""Full attention of one token in C++, split over the context."""

import torch
from torch import Tensor

from retrobench_kernels import native
from retrobench_kernels.cpu_common import DTYPES, addresses, int32, query, rows, splits, strides
from retrobench_kernels.dense_decode.naive import DenseArgs


def dense_decode(args: DenseArgs) -> tuple[Tensor, Tensor]:
    """As ``dense_decode``; K and V are read once, in the dtype they have."""
    assert args.k_BGSD.dtype == args.v_BGSD.dtype
    batch, heads, dim = args.q_BHD.shape
    groups, tokens = args.k_BGSD.shape[1:3]
    k, v = rows(args.k_BGSD), rows(args.v_BGSD)
    q, exact_bf16 = query(args.q_BHD)
    bounds = [None if x is None else int32(x) for x in (args.start_B, args.end_B)]
    out, lse = torch.empty(batch, heads, dim), torch.empty(batch, heads)
    native.function("dense")(
        *addresses(q, k, v, *bounds, out, lse),
        batch, groups, heads // groups, tokens, dim, args.scale, args.softcap, strides(k, v),
        DTYPES[k.dtype], exact_bf16, splits(batch * groups, tokens), torch.get_num_threads(),
    )  # fmt: skip
    return out.to(args.q_BHD.dtype), lse
