"""Attention over part of the context, estimates of clusters, and their merge by log-sum-exp.

Every function takes post-RoPE queries and keys. Softmax statistics are float32.
"""

import torch
from torch import Tensor

from retrobench.core.method import AttentionArgs
from retrobench.memory.selection import Estimate, Partial


def attend(
    q_BHTD: Tensor,
    k_BGRD: Tensor,
    v_BGRD: Tensor,
    valid_BGR: Tensor,
    args: AttentionArgs,
    estimate: Estimate | None = None,
    log_weight_BGR: Tensor | None = None,
    partials: tuple[Partial, ...] = (),
) -> Tensor:
    """One token over a selected set of tokens plus, optionally, estimates and ready parts.

    The second axis of K and V may be KV heads (one set per group) or query heads. All parts share
    one softmax. ``log_weight_BGR`` is added to the tokens' logits.
    """
    groups = k_BGRD.shape[1]
    q_BGND = _fold(q_BHTD, groups)
    logit_BGNR = logits(q_BGND, k_BGRD, args)
    if log_weight_BGR is not None:
        logit_BGNR = logit_BGNR + log_weight_BGR[:, :, None]
    logit_BGNR = logit_BGNR.masked_fill(~valid_BGR[:, :, None], -torch.inf)
    part = partial(logit_BGNR, v_BGRD)
    if estimate is not None:
        heads = estimate.centroid_BGCD.shape[1]
        q_BGND = _fold(q_BHTD, heads)
        whole = part[0].reshape(*q_BGND.shape[:3], -1), part[1].reshape(q_BGND.shape[:3])
        part = merge(whole, estimated(q_BGND, estimate, args))
    whole = part[0].flatten(1, 2), part[1].flatten(1, 2)
    out_BHD = merge_all(whole, partials)
    return out_BHD.to(q_BHTD.dtype)[:, :, None]


def merge_all(part: Partial, others: tuple[Partial, ...]) -> Tensor:
    """``o_BHD`` of a part and others over disjoint sets."""
    for other in others:
        part = merge((part[0].float(), part[1]), other)
    return part[0]


def partial(logit_BGNR: Tensor, v_BGRD: Tensor) -> Partial:
    """Softmax over a part of the context: float32 ``(o_BGND, lse_BGN)``; empty parts give -inf."""
    lse = torch.logsumexp(logit_BGNR, -1)
    weight = torch.exp(logit_BGNR - _finite(lse)[..., None])
    return weight.to(v_BGRD.dtype).matmul(v_BGRD).float(), lse


def estimated(q_BGND: Tensor, estimate: Estimate, args: AttentionArgs) -> Partial:
    """The estimation zone as a part ``(o_BGND, lse_BGN)`` to be merged."""
    logit = logits(q_BGND, estimate.centroid_BGCD, args)
    if estimate.gain_BGC is not None:
        logit = logit + estimate.gain_BGC[:, :, None]
    size = estimate.size_BGC[:, :, None].float()
    lse = torch.logsumexp(logit + size.log(), -1)
    logit = logit.masked_fill(size == 0, -torch.inf)
    weight = torch.exp(logit - _finite(lse)[..., None])
    return weight.matmul(estimate.value_sum_BGCD.float()), lse


def merge(first: Partial, second: Partial) -> Partial:
    """Two parts ``(o, lse)`` over disjoint sets as one."""
    lse = torch.logaddexp(first[1], second[1])
    out = first[0] * torch.exp(first[1] - _finite(lse))[..., None]
    return out + second[0] * torch.exp(second[1] - _finite(lse))[..., None], lse


def logits(q_BGND: Tensor, k_BGRD: Tensor, args: AttentionArgs) -> Tensor:
    """Float32 logits ``BGNR``: scaled, and soft-capped where the model does that."""
    return softcapped((q_BGND.float() @ k_BGRD.float().transpose(-1, -2)) * args.scale, args)


def softcapped(logit: Tensor, args: AttentionArgs) -> Tensor:
    """Scaled logits, soft-capped where the model does that."""
    return logit if args.softcap is None else torch.tanh(logit / args.softcap) * args.softcap


def _finite(lse: Tensor) -> Tensor:
    """Keeps exp(-inf - -inf) from being NaN."""
    return lse.clamp_min(torch.finfo(torch.float32).min)


def _fold(q_BHTD: Tensor, groups: int) -> Tensor:
    batch, heads, _, dim = q_BHTD.shape
    return q_BHTD.reshape(batch, groups, heads // groups, dim)
