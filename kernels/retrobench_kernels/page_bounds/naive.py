"""Page extrema and Quest's upper bound of logits per page (arXiv 2406.10774, section 3.3)."""

import torch
from torch import Tensor

from retrobench_kernels.dispatch import op


@op
def page_extrema(k_BGSD: Tensor, page_size: int, valid_BS: Tensor) -> tuple[Tensor, Tensor]:
    """Element-wise (min, max) of the keys of each page, ``BGCD``; S is a multiple of the page.

    Invalid tokens (padding) do not count; a page without valid tokens gets +inf, -inf.
    """
    batch, groups, num_tokens, dim = k_BGSD.shape
    assert num_tokens % page_size == 0, "whole pages only"
    paged = k_BGSD.reshape(batch, groups, num_tokens // page_size, page_size, dim)
    keep = valid_BS.reshape(batch, 1, num_tokens // page_size, page_size, 1)
    low = paged.masked_fill(~keep, torch.inf).amin(3)
    return low, paged.masked_fill(~keep, -torch.inf).amax(3)


@op
def upper_bound(q_BHD: Tensor, low_BGCD: Tensor, high_BGCD: Tensor) -> Tensor:
    """``sum_d max(q_d * low_d, q_d * high_d)`` per query head and page, ``BHC`` in float32.

    Positive query entries take the maximum, negative ones the minimum: two products.
    """
    batch, heads, dim = q_BHD.shape
    groups = low_BGCD.shape[1]
    q_BGND = q_BHD.float().reshape(batch, groups, heads // groups, dim)
    positive = q_BGND.clamp_min(0) @ high_BGCD.float().transpose(-1, -2)
    negative = q_BGND.clamp_max(0) @ low_BGCD.float().transpose(-1, -2)
    return (positive + negative).reshape(batch, heads, -1)
