"""Adaptive budget: a step retrieves only the clusters whose estimate would be wrong by enough.

Ours, not the paper's; off by default. Estimating cluster j instead of retrieving it moves a head's
output by at most about

    p_j * (exp(k_j / 2) - 1 + sqrt(k_j)) * |v| / |o|

relative to that output: ``p_j`` is the cluster's estimated share of the softmax, ``k_j`` the
variance of the logit inside it (``estimation.KeyCovariance``), so that the bracket bounds the
error of its weight plus how far its weighted values can stand off their mean, ``|v|`` the typical
norm of a value and ``|o|`` that of the head's output one step ago. Where the variance is so large
that one key may carry the cluster, the exponential makes sure it is retrieved.
"""

import torch
from torch import Tensor

from retrobench.core.shapes import KVShape
from retrobench.memory.placement import Holder
from retrobench_methods.retroinfer.weights import log_weights

_MAX_VARIANCE = 80.0  # exp(40) is certainly too much, and far from overflow


class ErrorBound(Holder):
    """Norms of values and of the last outputs; state of layers, rows and heads."""

    def __init__(self, tolerance: float, shape: KVShape) -> None:
        rows = (len(shape.layers), shape.batch)
        self.tolerance = tolerance
        self.square_LBG = torch.zeros(*rows, shape.num_kv_heads, device=shape.device)
        self.tokens_LB = torch.zeros(*rows, device=shape.device)
        # no output yet: an infinite bound, so that the first step retrieves everything
        self.output_norm_LBH = torch.zeros(*rows, shape.num_heads, device=shape.device)

    def store(self, i: int, row: int, v_GSD: Tensor) -> None:
        """Values of new clusters."""
        self.square_LBG[i, row] += v_GSD.float().square().sum((1, 2))
        self.tokens_LB[i, row] += v_GSD.shape[1]

    def note_output(self, i: int, o_BHD: Tensor) -> None:
        """What the step put out."""
        self.output_norm_LBH[i] = o_BHD.float().norm(dim=-1)

    def keep(
        self,
        i: int,
        cluster_BGR: Tensor,
        logit_BHC: Tensor,
        size_BGC: Tensor,
        variance_BHC: Tensor,
        steady_lse_BH: Tensor,
    ) -> tuple[Tensor, Tensor]:
        """Retrieved clusters (-1 padded) that stay and that may be estimated: two ``BGR``.

        The bounds of the latter together stay within the tolerance in every head.
        """
        groups = size_BGC.shape[1]
        index_BGR = cluster_BGR.clamp_min(0).long()
        weight_BGNC = log_weights(logit_BHC, size_BGC)
        spread_BGNR = index_BGR[:, :, None].expand(-1, -1, weight_BGNC.shape[2], -1)
        steady_lse_BGN = steady_lse_BH.unflatten(1, (groups, -1))
        lse_BGN = torch.logaddexp(weight_BGNC.logsumexp(-1), steady_lse_BGN)
        share_BGNR = (weight_BGNC.gather(-1, spread_BGNR) - lse_BGN[..., None]).exp()
        variance_BGNR = variance_BHC.unflatten(1, (groups, -1)).gather(-1, spread_BGNR)
        variance_BGNR = variance_BGNR.clamp(0, _MAX_VARIANCE)
        norm_BG = (self.square_LBG[i] / self.tokens_LB[i].clamp_min(1)[:, None]).sqrt()
        output_BGN = self.output_norm_LBH[i].unflatten(1, (groups, -1))
        relative_BGN = norm_BG[..., None] / output_BGN.clamp_min(1e-20)
        error_BGNR = share_BGNR * (torch.expm1(variance_BGNR / 2) + variance_BGNR.sqrt())
        error_BGNR = error_BGNR * relative_BGN[..., None]
        ordered, stays = keep_within(cluster_BGR, error_BGNR, self.tolerance)
        return ordered.masked_fill(~stays, -1), ordered.masked_fill(stays, -1)


def keep_within(cluster_BGR: Tensor, error_BGNR: Tensor, tolerance: float) -> tuple[Tensor, Tensor]:
    """Clusters by falling error, and which must stay so that no head loses more than ``tolerance``.

    The best cluster always stays.
    """
    error_BGNR = error_BGNR.masked_fill((cluster_BGR < 0)[:, :, None], 0)
    order = error_BGNR.amax(2).argsort(dim=-1, descending=True, stable=True)
    falling_BGNR = error_BGNR.gather(-1, order[:, :, None].expand_as(error_BGNR))
    # what leaving out this and later ones costs
    left_BGNR = falling_BGNR.flip(-1).cumsum(-1).flip(-1)
    keep_BGR = (left_BGNR > tolerance).any(2)
    keep_BGR[..., :1] = True
    return cluster_BGR.gather(-1, order), keep_BGR
