"""Exact causal attention of a chunk of the prompt over everything before it, and over itself.

Keys and values are read as they are stored: KV heads are not repeated, and no mask spans the
context. Where a mask is needed (sliding windows, soft caps), it covers a block of queries.
"""

import torch
import torch.nn.functional as F
from retrobench_kernels.causal_attention import causal_attention
from torch import Tensor
from torch.backends.cuda import SDPAParams, can_use_flash_attention
from torch.nn.attention.bias import causal_lower_right

from retrobench.core.method import AttentionArgs
from retrobench.engine.attention.exact import dense_decode, masked, valid_tokens


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
        return masked(q_BHTD, k_BGSD, v_BGSD, args, mask_B1TS)
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
    valid_BS = valid_tokens(pad_tokens, num_k, q_BHTD.device)
    windowed = window is not None and num_k > window
    form = causal_form(q_BHTD, k_BGSD, v_BGSD, args)
    if valid_BS is None and form == "kernel":
        return causal_attention(q_BHTD, k_BGSD, v_BGSD, args.scale, window)
    if valid_BS is None and not windowed:
        if form == "token":
            return dense_decode(q_BHTD, k_BGSD, v_BGSD, args)
        if form == "flash":
            return F.scaled_dot_product_attention(
                q_BHTD, k_BGSD, v_BGSD, attn_mask=causal_lower_right(num_q, num_k),
                scale=args.scale, enable_gqa=True,
            )  # fmt: skip
        if form == "split":
            return _split(q_BHTD, k_BGSD, v_BGSD, args.scale)
    return _in_blocks(q_BHTD, k_BGSD, v_BGSD, args, valid_BS, window if windowed else None, block)


def causal_form(q_BHTD: Tensor, k_BGSD: Tensor, v_BGSD: Tensor, args: AttentionArgs) -> str:
    """How a chunk over the whole context is computed here.

    ``flash``: one flash kernel with its own causal edge (CUDA). ``kernel``: our own
    (``causal_attention``, bfloat16 on a CPU that multiplies it). ``split``: two flash calls, of
    what was before the chunk and of the chunk itself (CPU). ``masked``: blocks of queries under a
    mask, for soft caps and for dtypes and head dims that flash kernels do not take. ``token``: a
    chunk of one token, as in a decode step.
    """
    if q_BHTD.shape[2] == 1:
        return "token"
    if args.softcap is not None or q_BHTD.shape[-1] != v_BGSD.shape[-1]:
        return "masked"
    if q_BHTD.is_cuda:
        # not "causal": that flag means the upper left edge, which a later chunk does not have
        params = SDPAParams(q_BHTD, k_BGSD, v_BGSD, None, 0.0, False, True)
        return "flash" if can_use_flash_attention(params) else "masked"
    if q_BHTD.device.type != "cpu":
        return "masked"
    return "kernel" if causal_attention.has_fast_form(q_BHTD) else "split"


def _split(q_BHTD: Tensor, k_BGSD: Tensor, v_BGSD: Tensor, scale: float) -> Tensor:
    """The part before the chunk, with the GQA group folded into the queries, and the chunk itself.

    Merged by log-sum-exp. The causal part goes one query head of each group at a time: folded
    queries have no order that a causal edge could follow.
    """
    num_q, before = q_BHTD.shape[2], k_BGSD.shape[2] - q_BHTD.shape[2]
    q_BGNTD = q_BHTD.unflatten(1, (k_BGSD.shape[1], -1))
    k_own, v_own = k_BGSD[:, :, before:], v_BGSD[:, :, before:]
    own = [
        _flash(q_BGNTD[:, :, n], k_own, v_own, scale, is_causal=True)
        for n in range(q_BGNTD.shape[2])
    ]
    out = torch.stack([o for o, _ in own], 2)
    if before:
        past, past_lse = _flash(
            q_BGNTD.flatten(2, 3), k_BGSD[:, :, :before], v_BGSD[:, :, :before], scale, False
        )
        lse = torch.stack([part for _, part in own], 2)
        share = torch.sigmoid(past_lse.unflatten(2, (-1, num_q)) - lse)[..., None]
        past = past.unflatten(2, (-1, num_q)).to(share.dtype)
        out = torch.lerp(out.to(share.dtype), past, share)
    return out.flatten(1, 2).to(q_BHTD.dtype)


def _flash(
    q_BGTD: Tensor, k_BGSD: Tensor, v_BGSD: Tensor, scale: float, is_causal: bool
) -> tuple[Tensor, Tensor]:
    """torch's flash attention on a CPU, with the log-sum-exp that its public function drops."""
    flash = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
    return flash(q_BGTD, k_BGSD, v_BGSD, is_causal=is_causal, scale=scale)


def _in_blocks(
    q_BHTD: Tensor,
    k_BGSD: Tensor,
    v_BGSD: Tensor,
    args: AttentionArgs,
    valid_BS: Tensor | None,
    window: int | None,
    block: int,
) -> Tensor:
    """Blocks of queries, each under a mask over the keys that any of them sees."""
    num_q, num_k = q_BHTD.shape[2], k_BGSD.shape[2]
    out = torch.empty_like(q_BHTD[..., : v_BGSD.shape[-1]])
    position = torch.arange(num_k, device=q_BHTD.device)
    for start in range(0, num_q, block):
        end = min(num_q, start + block)
        high = num_k - num_q + end
        low = 0 if window is None else max(0, num_k - num_q + start - window + 1)
        query_position = position[num_k - num_q + start : high, None]
        seen = position[low:high] <= query_position
        if window is not None:
            seen = seen & (position[low:high] > query_position - window)
        seen = seen[None, None]
        if valid_BS is not None:
            seen = seen & valid_BS[:, None, None, low:high]
        out[:, :, start:end] = masked(
            q_BHTD[:, :, start:end], k_BGSD[:, :, low:high], v_BGSD[:, :, low:high], args, seen
        )
    return out
