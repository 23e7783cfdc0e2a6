"""Speculated importance of tokens in plain torch."""

from __future__ import annotations

import torch
from torch import Tensor


def gap_scores(
    q_BGNC: Tensor, key_BGSC: Tensor, exists_BGS: Tensor, scale: float, *, per_head: bool
) -> Tensor:
    """Gap of each token's logit to the largest one of the query head, float32, 0 at most.

    A KV head's score is the best of its query heads (``score_BGS``), unless ``per_head``
    (``score_BHS``). Tokens that do not exist have -inf. The query is rounded to the keys' dtype.
    """
    logit = (q_BGNC.to(key_BGSC.dtype) @ key_BGSC.mT).float() * scale
    return head_gaps(logit, exists_BGS, per_head=per_head)


def head_gaps(logit_BGNS: Tensor, exists_BGS: Tensor, *, per_head: bool) -> Tensor:
    """The scores for given logits."""
    logit = logit_BGNS.masked_fill(~exists_BGS[:, :, None], -torch.inf)
    top = logit.amax(-1, keepdim=True).clamp_min(torch.finfo(torch.float32).min)
    gap = logit - top
    return gap.flatten(1, 2) if per_head else gap.amax(2)
