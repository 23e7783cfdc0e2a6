"""Selection of pages in plain torch; the bounds come from ``page_bounds``."""

from __future__ import annotations

import torch
from torch import Tensor

from retrobench_kernels.page_bounds import upper_bound


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
    """The ``selected_B`` best of the first ``num_pages_B`` pages of each row and KV head.

    Rank: the upper bound ``sum_d max(q_d * low_d, q_d * high_d)``, summed over the GQA group. With
    ``newest`` a row's last page is always among them; of equal pages the earlier one wins. Returns
    ``page_BGK`` (int32 sets, -1 padded, K = ``max_selected``). Later pages are never read.
    """
    page = torch.arange(low_BGCD.shape[2], device=q_BHD.device)
    absent = (page >= num_pages_B[:, None])[:, None, :, None]
    bound_BHC = upper_bound(
        q_BHD, low_BGCD.masked_fill(absent, 0), high_BGCD.masked_fill(absent, 0)
    )
    bound_BGC = bound_BHC.unflatten(1, (low_BGCD.shape[1], -1)).sum(2)
    counts = num_pages_B, selected_B
    return best_pages(bound_BGC, *counts, max_selected=max_selected, newest=newest)


def best_pages(
    bound_BXC: Tensor,
    num_pages_B: Tensor,
    selected_B: Tensor,
    *,
    max_selected: int,
    newest: bool,
) -> Tensor:
    """The pages of the largest bounds for any second axis; see ``page_select``."""
    page = torch.arange(bound_BXC.shape[-1], device=bound_BXC.device)
    last_B11 = num_pages_B[:, None, None] - 1
    if newest:
        bound_BXC = bound_BXC.masked_fill(page == last_B11, torch.inf)
    bound_BXC = bound_BXC.masked_fill(page > last_B11, -torch.inf)
    # a stable sort: equal bounds go to the earlier page, so that runs repeat
    order = bound_BXC.sort(dim=-1, descending=True, stable=True)
    keep = (page < selected_B[:, None, None]) & (order.values > -torch.inf)
    return order.indices.masked_fill(~keep, -1)[..., :max_selected].int()
