"""What clusters weigh in the softmax by their estimate, and how ``cluster_select`` ranks them."""

import torch
from torch import Tensor


def log_weights(logit_BHC: Tensor, size_BGC: Tensor) -> Tensor:
    """Log of ``size * exp(logit)``, ``BGNC``; -inf for clusters of size 0, which do not exist."""
    logit_BGNC = logit_BHC.unflatten(1, (size_BGC.shape[1], -1))
    weight_BGNC = logit_BGNC + size_BGC[:, :, None].clamp_min(1).log()
    return weight_BGNC.masked_fill((size_BGC == 0)[:, :, None], -torch.inf)


def rank_scores(logit_BHC: Tensor, size_BGC: Tensor, weigh_sizes: bool) -> Tensor:
    """Softmax weights of clusters, for all of their tokens or for one, summed over the group."""
    counted_BGC = size_BGC if weigh_sizes else size_BGC.clamp_max(1)
    return log_weights(logit_BHC, counted_BGC).softmax(-1).sum(2)
