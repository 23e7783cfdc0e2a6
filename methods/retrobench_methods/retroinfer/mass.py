"""Budgets of attention mass: a step retrieves the fewest clusters that hold it, by the estimate.

A cluster of ``s`` keys with centroid ``c`` is taken to weigh ``s * exp(scale * q.c)``, which is
never more than its keys do (paper, Eq. 3); the steady zone's weights are exact.
"""

import torch
from retrobench_kernels.dense_decode import dense_decode
from torch import Tensor

from retrobench.core.method import AttentionArgs
from retrobench.engine.attention.index import enough
from retrobench_methods.retroinfer.wave_buffer import WaveBuffer
from retrobench_methods.retroinfer.weights import log_weights, rank_scores


def steady_lse(i: int, q_BHD: Tensor, buffer: WaveBuffer, args: AttentionArgs) -> Tensor:
    """Log-sum-exp of the steady zone's logits in layer number ``i``, ``BH``."""
    keys = buffer.k_recent[i]  # the keys stand in for values, which are not looked at
    softcap, count = args.softcap or 0.0, buffer.count_LB[i]
    _, lse_BH = dense_decode(q_BHD, keys, keys, args.scale, end_B=count, softcap=softcap)
    return lse_BH


def until_enough(
    retrieved_BGR: Tensor,
    estimated_BGE: Tensor,
    logit_BHC: Tensor,
    size_BGC: Tensor,
    steady_lse_BH: Tensor,
    top_p: float,
    estimated_B: Tensor,
    *,
    weigh_sizes: bool,
) -> tuple[Tensor, Tensor]:
    """Clusters to retrieve and to estimate, -1 padded.

    Retrieved are the first in rank of ``retrieved_BGR`` that bring the mass, the steady zone's
    included, to ``top_p``: the mean over the query heads of a KV head. The next ``estimated_B`` in
    rank are estimated, first those that no longer are retrieved, then ``estimated_BGE``. Ranks are
    those of ``cluster_select``. Clusters of size 0 do not exist.
    """
    groups = size_BGC.shape[1]
    weight_BGNC = log_weights(logit_BHC, size_BGC)
    own_lse_BGN = weight_BGNC.logsumexp(-1)
    all_lse_BGN = torch.logaddexp(own_lse_BGN, steady_lse_BH.unflatten(1, (groups, -1)))
    mass_BGC = (weight_BGNC - all_lse_BGN[..., None]).exp().mean(2)
    score_BGC = rank_scores(logit_BHC, size_BGC, weigh_sizes)

    def by_rank(cluster_BGK: Tensor) -> Tensor:
        score_BGK = score_BGC.gather(-1, cluster_BGK.clamp_min(0).long())
        score_BGK = score_BGK.masked_fill(cluster_BGK < 0, -1)
        order = score_BGK.argsort(dim=-1, descending=True, stable=True)
        return cluster_BGK.gather(-1, order)

    retrieved_BGR = by_rank(retrieved_BGR)
    held_BGR = mass_BGC.gather(-1, retrieved_BGR.clamp_min(0).long())
    held_BGR = held_BGR.masked_fill(retrieved_BGR < 0, 0)
    left_BGR = enough(held_BGR, mass_BGC.sum(-1, keepdim=True), top_p)
    left_BGR = left_BGR & (retrieved_BGR >= 0)
    rest_BGK = torch.cat([retrieved_BGR.masked_fill(~left_BGR, -1), by_rank(estimated_BGE)], -1)
    beyond_BGK = (rest_BGK >= 0).cumsum(-1) > estimated_B[:, None, None]
    return retrieved_BGR.masked_fill(left_BGR, -1), rest_BGK.masked_fill(beyond_BGK, -1)
