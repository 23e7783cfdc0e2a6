"""What a step of RetroInfer attends: clusters to retrieve, and clusters to estimate."""

from dataclasses import dataclass

from torch import Tensor

from retrobench.memory.selection import Spans


@dataclass(frozen=True, slots=True, kw_only=True)
class ClusterSelection(Spans):
    """Clusters to retrieve (``chosen_BGN``) and to estimate (-1 padded, int32).

    ``logit_BHC`` are the logits of the centroids, corrected if asked for.
    """

    estimated_BGE: Tensor
    logit_BHC: Tensor
