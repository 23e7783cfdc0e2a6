"""Selection of pages by the upper bound of their logits (Quest), one set per KV head."""

from typing import NamedTuple

import torch
from torch import Tensor

from retrobench_kernels.dispatch import op_of
from retrobench_kernels.page_bounds.naive import upper_bound


class PageSelectArgs(NamedTuple):
    """Arguments of ``page_select``. A row has the first ``num_pages_B`` of C pages."""

    q_BHD: Tensor
    low_BGCD: Tensor
    high_BGCD: Tensor
    num_pages_B: Tensor
    selected_B: Tensor
    max_selected: int
    newest: bool

    def best(self, bound_BGC: Tensor) -> Tensor:
        """The pages of the largest bounds."""
        return best_pages(
            bound_BGC, self.num_pages_B, self.selected_B,
            max_selected=self.max_selected, newest=self.newest,
        )  # fmt: skip


@op_of(PageSelectArgs, chosen_by="low_BGCD")
def page_select(args: PageSelectArgs) -> Tensor:
    """The ``selected_B`` best of the first ``num_pages_B`` pages of each row and KV head.

    Rank: the upper bound ``sum_d max(q_d * low_d, q_d * high_d)``, summed over the GQA group. With
    ``newest`` a row's last page is always among them; of equal pages the earlier one wins. Returns
    ``page_BGK`` (int32 sets, -1 padded, K = ``max_selected``). Later pages are never read.
    """
    groups, pages = args.low_BGCD.shape[1:3]
    page = torch.arange(pages, device=args.q_BHD.device)
    absent = (page >= args.num_pages_B[:, None])[:, None, :, None]
    low, high = (x.masked_fill(absent, 0) for x in (args.low_BGCD, args.high_BGCD))
    bound_BHC = upper_bound(args.q_BHD, low, high)
    return args.best(bound_BHC.unflatten(1, (groups, -1)).sum(2))


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
