"""Speculated importance of tokens from a few channels of their keys (InfiniGen)."""

from typing import NamedTuple

import torch
from torch import Tensor

from retrobench_kernels.dispatch import op_of


class MarginArgs(NamedTuple):
    """Arguments of ``logit_margin``."""

    q_BGNC: Tensor
    key_BGSC: Tensor
    exists_BGS: Tensor
    scale: float
    per_head: bool


@op_of(MarginArgs, chosen_by="key_BGSC")
def logit_margin(args: MarginArgs) -> Tensor:
    """Each token's logit minus the largest one of the query head, float32, 0 at most.

    A KV head's score is the best of its query heads (``score_BGS``), unless ``per_head``
    (``score_BHS``). Tokens that do not exist have -inf. The query is rounded to the keys' dtype.
    """
    logit = (args.q_BGNC.to(args.key_BGSC.dtype) @ args.key_BGSC.mT).float() * args.scale
    return head_margins(logit, args.exists_BGS, per_head=args.per_head)


def head_margins(logit_BGNS: Tensor, exists_BGS: Tensor, *, per_head: bool) -> Tensor:
    """The scores for given logits."""
    logit = logit_BGNS.masked_fill(~exists_BGS[:, :, None], -torch.inf)
    margin = logit - logit.amax(-1, keepdim=True).clamp_min(torch.finfo(torch.float32).min)
    return margin.flatten(1, 2) if per_head else margin.amax(2)
