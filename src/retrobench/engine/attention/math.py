"""Exact attention, estimated attention, and their merge by log-sum-exp, in plain torch.

Every function takes post-RoPE queries and keys. Softmax statistics are float32.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from retrobench.core.method import AttentionArgs
from retrobench.engine import prefill_memo


@dataclass(frozen=True, slots=True)
class Estimate:
    """Clusters attended through their centroid (RetroInfer's estimation zone, paper Eq. 2 and 4).

    A cluster of ``size`` tokens adds ``size * exp(q.c)`` to the softmax's denominator and
    ``exp(q.c) * value_sum`` to its numerator; size 0 means absent.
    """

    centroid_BGCD: Tensor
    value_sum_BGCD: Tensor
    size_BGC: Tensor


def causal(
    q_BHTD: Tensor,
    k_BGSD: Tensor,
    v_BGSD: Tensor,
    args: AttentionArgs,
    pad_tokens: tuple[int, ...] | Tensor | None = None,
    window: int | None = None,
    block: int = 1024,
) -> Tensor:
    """Exact causal attention of the last T tokens over S >= T tokens, aligned to the end.

    Never builds a mask over more than ``block`` queries. ``pad_tokens`` is the left padding of
    each row (or a boolean mask ``valid_BS``); ``window`` limits how far a token looks back.
    """
    memo = prefill_memo.active(q_BHTD)
    if memo is None:
        return _causal(q_BHTD, k_BGSD, v_BGSD, args, pad_tokens, window, block)
    masks = (pad_tokens,) if isinstance(pad_tokens, Tensor) else ()
    rest = (args, window, block, None if masks else pad_tokens)
    return memo.find(
        (q_BHTD, k_BGSD, v_BGSD, *masks),
        rest,
        lambda: _causal(q_BHTD, k_BGSD, v_BGSD, args, pad_tokens, window, block),
    )


def _causal(
    q_BHTD: Tensor,
    k_BGSD: Tensor,
    v_BGSD: Tensor,
    args: AttentionArgs,
    pad_tokens: tuple[int, ...] | Tensor | None,
    window: int | None,
    block: int,
) -> Tensor:
    num_q, num_k = q_BHTD.shape[2], k_BGSD.shape[2]
    valid_BS = _valid(pad_tokens, num_k, q_BHTD.device)
    windowed = window is not None and num_k > window
    if valid_BS is None and not windowed and args.softcap is None:
        if num_q == 1:
            return dense_decode(q_BHTD, k_BGSD, v_BGSD, args)
        if num_q == num_k:
            k_BHSD, v_BHSD = _expand(k_BGSD, q_BHTD), _expand(v_BGSD, q_BHTD)
            return F.scaled_dot_product_attention(
                q_BHTD, k_BHSD, v_BHSD, scale=args.scale, is_causal=True
            )
    out = torch.empty_like(q_BHTD[..., : v_BGSD.shape[-1]])
    position = torch.arange(num_k, device=q_BHTD.device)
    for start in range(0, num_q, block):
        end = min(num_q, start + block)
        high = num_k - num_q + end
        low = max(0, num_k - num_q + start - window + 1) if windowed and window else 0
        query_position = position[num_k - num_q + start : high, None]
        mask = position[low:high] <= query_position
        if windowed and window:
            mask = mask & (position[low:high] > query_position - window)
        mask = mask[None, None]
        if valid_BS is not None:
            mask = mask & valid_BS[:, None, None, low:high]
        out[:, :, start:end] = _masked(
            q_BHTD[:, :, start:end], k_BGSD[:, :, low:high], v_BGSD[:, :, low:high], args, mask
        )
    return out


def dense_decode(
    q_BHTD: Tensor,
    k_BGSD: Tensor,
    v_BGSD: Tensor,
    args: AttentionArgs,
    pad_tokens: tuple[int, ...] | None = None,
) -> Tensor:
    """Exact attention of one token over all S tokens.

    The GQA group is folded into the query length: on CPU that is several times faster than
    ``enable_gqa`` and equal in value.
    """
    batch, heads, _, dim = q_BHTD.shape
    groups = k_BGSD.shape[1]
    valid_BS = _valid(pad_tokens, k_BGSD.shape[2], q_BHTD.device)
    folded = q_BHTD.reshape(batch, groups, heads // groups, dim)
    mask = None if valid_BS is None else valid_BS[:, None, None]
    if args.softcap is None:
        out = F.scaled_dot_product_attention(
            folded, k_BGSD, v_BGSD, attn_mask=mask, scale=args.scale
        )
    else:
        out = _masked(folded, k_BGSD, v_BGSD, args, mask)
    return out.reshape(batch, heads, 1, v_BGSD.shape[-1])


def attend(
    q_BHTD: Tensor,
    k_BGRD: Tensor,
    v_BGRD: Tensor,
    valid_BGR: Tensor,
    args: AttentionArgs,
    estimate: Estimate | None = None,
) -> Tensor:
    """One token over a selected set of tokens plus, optionally, estimated clusters.

    The second axis of K and V may be KV heads (one set per group) or query heads. The exact and
    the estimated part share one softmax (merged by log-sum-exp).
    """
    groups = k_BGRD.shape[1]
    q_BGND = _fold(q_BHTD, groups)
    logit_BGNR = _logits(q_BGND, k_BGRD, args).masked_fill(~valid_BGR[:, :, None], -torch.inf)
    out, lse = partial(logit_BGNR, v_BGRD)
    if estimate is not None:
        out, lse = merge((out, lse), estimated(q_BGND, estimate, args))
    return out.to(q_BHTD.dtype).reshape(*q_BHTD.shape[:3], v_BGRD.shape[-1])


def partial(logit_BGNR: Tensor, v_BGRD: Tensor) -> tuple[Tensor, Tensor]:
    """Softmax over a part of the context: float32 ``(o_BGND, lse_BGN)``; empty parts give -inf."""
    lse = torch.logsumexp(logit_BGNR, -1)
    weight = torch.exp(logit_BGNR - lse.clamp_min(torch.finfo(torch.float32).min)[..., None])
    return weight.to(v_BGRD.dtype).matmul(v_BGRD).float(), lse


def estimated(q_BGND: Tensor, estimate: Estimate, args: AttentionArgs) -> tuple[Tensor, Tensor]:
    """The estimation zone as a part ``(o_BGND, lse_BGN)`` to be merged."""
    logit = _logits(q_BGND, estimate.centroid_BGCD, args)
    size = estimate.size_BGC[:, :, None].float()
    lse = torch.logsumexp(logit + size.log(), -1)
    logit = logit.masked_fill(size == 0, -torch.inf)
    weight = torch.exp(logit - lse.clamp_min(torch.finfo(torch.float32).min)[..., None])
    return weight.matmul(estimate.value_sum_BGCD.float()), lse


def merge(first: tuple[Tensor, Tensor], second: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    """Two parts ``(o, lse)`` over disjoint sets as one."""
    lse = torch.logaddexp(first[1], second[1])
    safe = lse.clamp_min(torch.finfo(torch.float32).min)
    out = first[0] * torch.exp(first[1] - safe)[..., None]
    return out + second[0] * torch.exp(second[1] - safe)[..., None], lse


def _fold(q_BHTD: Tensor, groups: int) -> Tensor:
    batch, heads, _, dim = q_BHTD.shape
    return q_BHTD.reshape(batch, groups, heads // groups, dim)


def _logits(q_BGND: Tensor, k_BGRD: Tensor, args: AttentionArgs) -> Tensor:
    logit = (q_BGND.float() @ k_BGRD.float().transpose(-1, -2)) * args.scale
    return logit if args.softcap is None else torch.tanh(logit / args.softcap) * args.softcap


def _masked(
    q_BHTD: Tensor, k_BGSD: Tensor, v_BGSD: Tensor, args: AttentionArgs, mask: Tensor | None
) -> Tensor:
    k_BHSD, v_BHSD = _expand(k_BGSD, q_BHTD), _expand(v_BGSD, q_BHTD)
    if args.softcap is None:
        # A fully masked query (left padding) has no output; zero keeps NaN out of the model.
        out = F.scaled_dot_product_attention(
            q_BHTD, k_BHSD, v_BHSD, attn_mask=mask, scale=args.scale
        )
        return out if mask is None else out.nan_to_num(0.0)
    logit = _logits(q_BHTD, k_BHSD, args)
    if mask is not None:
        logit = logit.masked_fill(~mask, torch.finfo(torch.float32).min)
    return logit.softmax(-1).to(v_BHSD.dtype) @ v_BHSD


def _expand(kv_BGSD: Tensor, q_BHTD: Tensor) -> Tensor:
    """KV heads repeated to the query's heads as a view where possible."""
    batch, groups, num_tokens, dim = kv_BGSD.shape
    repeat = q_BHTD.shape[1] // groups
    if repeat == 1:
        return kv_BGSD
    return (
        kv_BGSD[:, :, None]
        .expand(batch, groups, repeat, num_tokens, dim)
        .reshape(batch, groups * repeat, num_tokens, dim)
    )


def _valid(
    pad_tokens: tuple[int, ...] | Tensor | None, num_tokens: int, device: torch.device
) -> Tensor | None:
    if pad_tokens is None:
        return None
    if isinstance(pad_tokens, Tensor):
        return pad_tokens != 0
    if not any(pad_tokens):
        return None
    pad_B = torch.tensor(pad_tokens, device=device)
    return torch.arange(num_tokens, device=device) >= pad_B[:, None]
