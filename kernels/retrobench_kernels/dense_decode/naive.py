"""Full attention of one decode token; the reference is in plain torch."""

from typing import NamedTuple

import torch
from torch import Tensor

from retrobench_kernels.dispatch import op_of


class DenseArgs(NamedTuple):
    """Arguments of ``dense_decode``."""

    q_BHD: Tensor
    k_BGSD: Tensor
    v_BGSD: Tensor
    scale: float
    start_B: Tensor | None = None
    end_B: Tensor | None = None
    softcap: float = 0.0


@op_of(DenseArgs)
def dense_decode(args: DenseArgs) -> tuple[Tensor, Tensor]:
    """Attend tokens ``start_B <= s < end_B`` of each row (default: all S).

    Returns ``(o_BHD, lse_BH)``: the output in the dtype of q, and the natural log of the softmax
    denominator in float32. A row without tokens gives 0 and -inf. ``softcap`` > 0 applies
    ``softcap * tanh(logit / softcap)``.
    """
    q_BHD, k_BGSD, v_BGSD, scale, start_B, end_B, softcap = args
    batch, heads, dim = q_BHD.shape
    groups, num_tokens = k_BGSD.shape[1:3]
    q_BGND = q_BHD.reshape(batch, groups, heads // groups, dim).float()
    logit_BGNS = logits(q_BGND, k_BGSD, scale, softcap)
    token = torch.arange(num_tokens, device=q_BHD.device)
    for bound, outside in ((start_B, torch.lt), (end_B, torch.ge)):
        if bound is not None:
            logit_BGNS = logit_BGNS.masked_fill(
                outside(token, bound[:, None, None, None]), -torch.inf
            )
    out, lse = softmax_sum(logit_BGNS, v_BGSD)
    return out.reshape(batch, heads, -1).to(q_BHD.dtype), lse.reshape(batch, heads)


def logits(q_BGND: Tensor, k_BGSD: Tensor, scale: float, softcap: float) -> Tensor:
    """``scale * q.k``, soft-capped if asked, in float32."""
    logit = (q_BGND.float() @ k_BGSD.float().transpose(-1, -2)) * scale
    return softcap * torch.tanh(logit / softcap) if softcap > 0 else logit


def softmax_sum(logit_BGNS: Tensor, v_BGSD: Tensor) -> tuple[Tensor, Tensor]:
    """Softmax-weighted values and log-sum-exp; values behind a logit of -inf are never read."""
    lse = torch.logsumexp(logit_BGNS, -1)
    weight = torch.exp(logit_BGNS - lse.clamp_min(torch.finfo(torch.float32).min)[..., None])
    seen = (logit_BGNS > -torch.inf).any(2)[..., None]
    return weight @ v_BGSD.float().masked_fill(~seen, 0), lse
