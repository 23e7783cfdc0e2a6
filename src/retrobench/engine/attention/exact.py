"""Exact attention in plain torch: of one decode step, under a mask, and its mass per key.

Every function takes post-RoPE queries and keys. Softmax statistics are float32.
"""

from itertools import product

import torch
import torch.nn.functional as F
from torch import Tensor

from retrobench.core.method import AttentionArgs
from retrobench.engine.attention.parts import logits


def dense_decode(
    q_BHTD: Tensor,
    k_BGSD: Tensor,
    v_BGSD: Tensor,
    args: AttentionArgs,
    pad_tokens: tuple[int, ...] | None = None,
) -> Tensor:
    """Exact attention of one token over all S tokens."""
    valid_BS = valid_tokens(pad_tokens, k_BGSD.shape[2], q_BHTD.device)
    mask = None if valid_BS is None else valid_BS[:, None, None]
    return masked(q_BHTD, k_BGSD, v_BGSD, args, mask)


def attention_mass(
    q_BHWD: Tensor, k_BGSD: Tensor, args: AttentionArgs, pad_tokens: tuple[int, ...]
) -> Tensor:
    """Softmax weight that the last W tokens of the context give each key, summed: ``mass_BHS``."""
    (batch, groups, tokens, _), window = k_BGSD.shape, q_BHWD.shape[2]
    q_BGNWD = q_BHWD.unflatten(1, (groups, -1))
    position = torch.arange(tokens, device=k_BGSD.device)
    seen_WS = position <= position[tokens - window :, None]
    mass = torch.zeros(*q_BGNWD.shape[:3], tokens, device=k_BGSD.device)
    for row, head in product(range(batch), range(groups)):  # all at once would need much memory
        q_1GND = q_BGNWD[None, None, row, head].flatten(2, 3)
        logit_NWS = logits(q_1GND, k_BGSD[None, row, head, None], args).view(-1, window, tokens)
        logit_NWS.masked_fill_(~(seen_WS & (position >= pad_tokens[row])), -torch.inf)
        mass[row, head] = logit_NWS.softmax(-1).nan_to_num_(0.0).sum(1)
    return mass.flatten(1, 2)


def masked(
    q_BHTD: Tensor, k_BGSD: Tensor, v_BGSD: Tensor, args: AttentionArgs, mask_B1TS: Tensor | None
) -> Tensor:
    """Attention under a boolean mask, whose number of queries the caller keeps small.

    The GQA group is folded into the query length: keys and values are not repeated, and on a CPU
    that is several times faster than ``enable_gqa`` and equal in value.
    """
    q_BGNTD = q_BHTD.unflatten(1, (k_BGSD.shape[1], -1))
    group, num_q = q_BGNTD.shape[2:4]
    folded = q_BGNTD.flatten(2, 3)
    mask = mask_B1TS
    if mask is not None and group > 1:
        mask = mask[:, :, None].expand(-1, -1, group, -1, -1).flatten(2, 3)
    if args.softcap is None:
        out = F.scaled_dot_product_attention(
            folded, k_BGSD, v_BGSD, attn_mask=mask, scale=args.scale
        )
        # A fully masked query (left padding) has no output; zero keeps NaN out of the model.
        out = out if mask is None else out.nan_to_num(0.0)
    else:
        logit = logits(folded, k_BGSD, args)
        if mask is not None:
            logit = logit.masked_fill(~mask, torch.finfo(torch.float32).min)
        out = logit.softmax(-1).to(v_BGSD.dtype) @ v_BGSD
    return out.unflatten(2, (group, num_q)).flatten(1, 2)


def valid_tokens(
    pad_tokens: tuple[int, ...] | Tensor | None, num_tokens: int, device: torch.device
) -> Tensor | None:
    """Which tokens are no padding, ``BS``; None where all are."""
    if pad_tokens is None:
        return None
    if isinstance(pad_tokens, Tensor):
        return pad_tokens != 0
    if not any(pad_tokens):
        return None
    pad_B = torch.tensor(pad_tokens, device=device)
    return torch.arange(num_tokens, device=device) >= pad_B[:, None]
