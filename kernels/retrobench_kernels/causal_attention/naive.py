"""Attention of a chunk of the prompt over everything up to each of its tokens."""

import torch
from torch import Tensor

from retrobench_kernels.dispatch import op


@op
def causal_attention(
    q_BHTD: Tensor, k_BGSD: Tensor, v_BGSD: Tensor, scale: float, window: int | None = None
) -> Tensor:
    """Attend from the last T of S tokens, each to itself and what was before it.

    Returns ``o_BHTD`` in the dtype of q. ``window``: tokens that a query sees at most, itself
    included.
    """
    num_q, num_k = q_BHTD.shape[2], k_BGSD.shape[2]
    q_BGNTD = q_BHTD.unflatten(1, (k_BGSD.shape[1], -1)).float()
    logit_BGNTS = q_BGNTD @ k_BGSD.float().mT[:, :, None] * scale
    token = torch.arange(num_k, device=q_BHTD.device)
    query = token[num_k - num_q :, None]
    unseen_TS = token > query
    if window is not None:
        unseen_TS = unseen_TS | (token <= query - window)
    weight = logit_BGNTS.masked_fill(unseen_TS, -torch.inf).softmax(-1)
    return (weight @ v_BGSD.float()[:, :, None]).flatten(1, 2).to(q_BHTD.dtype)
