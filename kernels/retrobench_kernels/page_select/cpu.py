"""Selection of pages in C++: two dot products per page and KV head, and an exact cut.

Summed over the GQA group, the bound is linear in the positive and in the negative parts of the
queries, so that one vector of each serves all query heads.
"""

import torch
from torch import Tensor

from retrobench_kernels import native
from retrobench_kernels.cpu_common import DTYPES, addresses, int32, rows, strides
from retrobench_kernels.page_select.naive import PageSelectArgs


def page_select(args: PageSelectArgs) -> Tensor:
    """As ``page_select``; the sets come in ascending order."""
    assert args.low_BGCD.dtype == args.high_BGCD.dtype
    batch, groups, pages, dim = args.low_BGCD.shape
    q_BGND = args.q_BHD.float().unflatten(1, (groups, -1))
    both = torch.stack([q_BGND.clamp_min(0).sum(2), q_BGND.clamp_max(0).sum(2)], 2).contiguous()
    low, high = rows(args.low_BGCD), rows(args.high_BGCD)
    num_pages, selected = int32(args.num_pages_B), int32(args.selected_B)
    best = torch.empty(batch, groups, args.max_selected, dtype=torch.int32)
    native.function("page_select")(
        *addresses(both, low, high, num_pages, selected, best),
        batch, groups, pages, args.max_selected, dim, args.newest, strides(low, high),
        DTYPES[low.dtype], torch.get_num_threads(),
    )  # fmt: skip
    return best
