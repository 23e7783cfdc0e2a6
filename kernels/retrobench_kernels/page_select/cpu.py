"""Selection of pages in C++: two dot products per page and KV head, and an exact cut.

Summed over the GQA group, the bound is linear in the positive and in the negative parts of the
queries, so that one vector of each serves all query heads.
"""

from __future__ import annotations

import ctypes

import torch
from torch import Tensor

from retrobench_kernels import native
from retrobench_kernels.native import unsupported

__all__ = ["page_select", "unsupported"]


def page_select(
    q_BHD: Tensor,
    low_BGCD: Tensor,
    high_BGCD: Tensor,
    num_pages_B: Tensor,
    selected_B: Tensor,
    *,
    max_selected: int,
    newest: bool,
    library: ctypes.CDLL | None = None,
) -> Tensor:
    """As ``naive.page_select``; the sets come in ascending order."""
    library = library or native.library()
    assert library is not None and low_BGCD.dtype == high_BGCD.dtype
    batch, groups, pages, dim = low_BGCD.shape
    q_BGND = q_BHD.float().unflatten(1, (groups, -1))
    both = torch.stack([q_BGND.clamp_min(0).sum(2), q_BGND.clamp_max(0).sum(2)], 2).contiguous()
    low, high = native.rows(low_BGCD), native.rows(high_BGCD)
    counts = [native.int32(x) for x in (num_pages_B, selected_B)]
    best = torch.empty(batch, groups, max_selected, dtype=torch.int32)
    stride = (ctypes.c_int64 * 4)(*low.stride()[:2], *high.stride()[:2])
    library.retrobench_page_select(
        *map(ctypes.c_void_p, map(native.pointer, (both, low, high, *counts, best))),
        ctypes.c_int64(batch),
        ctypes.c_int64(groups),
        ctypes.c_int64(pages),
        ctypes.c_int64(max_selected),
        ctypes.c_int32(dim),
        ctypes.c_int32(newest),
        stride,
        ctypes.c_int32(native.DTYPES[low.dtype]),
        ctypes.c_int32(torch.get_num_threads()),
    )
    return best
