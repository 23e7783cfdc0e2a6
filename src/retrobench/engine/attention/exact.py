"""Exact attention in plain torch: of a chunk of the prompt, and of one decode step.

Every function takes post-RoPE queries and keys. Softmax statistics are float32.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from retrobench.core.method import AttentionArgs
from retrobench.engine.attention.parts import logits


def causal(
    q_BHTD: Tensor,
    k_BGSD: Tensor,
    v_BGSD: Tensor,
    args: AttentionArgs,
    pad_tokens: tuple[int, ...] | Tensor | None = None,
    window: int | None = None,
    block: int = 1024,
    mask_B1TS: Tensor | None = None,
) -> Tensor:
    """Exact causal attention of the last T tokens over S >= T tokens, aligned to the end.

    Never builds a mask over more than ``block`` queries. ``pad_tokens`` is the left padding of
    each row (or a boolean mask ``valid_BS``); ``window`` limits how far a token looks back. A
    boolean ``mask_B1TS`` says it all by itself. The output of padding is 0.
    """
    if mask_B1TS is not None:
        return _masked(q_BHTD, k_BGSD, v_BGSD, args, mask_B1TS)
    num_q, num_k = q_BHTD.shape[2], k_BGSD.shape[2]
    if isinstance(pad_tokens, tuple) and any(pad_tokens):
        # Row by row without its padding: no mask is read, and a row is as it would be alone.
        out = torch.zeros_like(q_BHTD[..., : v_BGSD.shape[-1]])
        for row, pad in enumerate(pad_tokens):
            first = max(0, pad - (num_k - num_q))
            if first < num_q:
                q, k, v = (x[row, None] for x in (q_BHTD, k_BGSD, v_BGSD))
                part = causal(
                    q[:, :, first:], k[:, :, pad:], v[:, :, pad:], args, None, window, block
                )
                out[row, :, first:] = part[0]
        return out
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
        seen = position[low:high] <= query_position
        if windowed and window:
            seen = seen & (position[low:high] > query_position - window)
        seen = seen[None, None]
        if valid_BS is not None:
            seen = seen & valid_BS[:, None, None, low:high]
        out[:, :, start:end] = _masked(
            q_BHTD[:, :, start:end], k_BGSD[:, :, low:high], v_BGSD[:, :, low:high], args, seen
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


def attention_mass(
    q_BHWD: Tensor, k_BGSD: Tensor, args: AttentionArgs, pad_tokens: tuple[int, ...]
) -> Tensor:
    """Softmax weight that the last W tokens of the context give each key, summed: ``mass_BHS``."""
    (batch, groups, tokens, _), window = k_BGSD.shape, q_BHWD.shape[2]
    pad_B1 = torch.tensor(pad_tokens, device=k_BGSD.device)[:, None]
    position = torch.arange(tokens, device=k_BGSD.device)
    mass = torch.zeros(batch, q_BHWD.shape[1], tokens, device=k_BGSD.device)
    for w in range(window):
        q_BGND = q_BHWD[:, :, w].unflatten(1, (groups, -1))
        seen_BS = (position <= tokens - window + w) & (position >= pad_B1)
        logit = logits(q_BGND, k_BGSD, args)
        logit = logit.masked_fill(~seen_BS[:, None, None], -torch.inf)
        mass += logit.softmax(-1).nan_to_num(0.0).flatten(1, 2)
    return mass


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
    logit = logits(q_BHTD, k_BHSD, args)
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
