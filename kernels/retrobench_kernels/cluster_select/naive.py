"""Scoring of cluster centroids and selection of the retrieval and estimation zones."""

from typing import NamedTuple

import torch
from torch import Tensor

from retrobench_kernels.codes import Codes, LaneCodes, decode
from retrobench_kernels.dense_decode.naive import logits
from retrobench_kernels.dispatch import op_of


class SelectArgs(NamedTuple):
    """Arguments of ``cluster_select``. A row has the first ``num_clusters_B`` of C clusters."""

    q_BHD: Tensor
    centroid_BGCD: Tensor | Codes | LaneCodes
    size_BGC: Tensor
    num_clusters_B: Tensor
    retrieved_B: Tensor
    estimated_B: Tensor
    scale: float
    max_retrieved: int
    max_estimated: int
    softcap: float = 0.0
    token_limit_B: Tensor | None = None
    bias_BGC: Tensor | None = None


@op_of(SelectArgs)
def cluster_select(args: SelectArgs) -> tuple[Tensor, Tensor, Tensor]:
    """Clusters to attend exactly, clusters to estimate, and all centroid logits.

    Rank: softmax of ``scale * q.c`` over the non-empty clusters of a row, per query head, summed
    over the GQA group; sizes do not weigh (RetroInfer, released code). The best ``retrieved_B`` go
    to ``retrieved_BGR``, the next ``estimated_B`` to ``estimated_BGE`` (int32, unordered sets, -1
    padded; R and E are ``max_retrieved`` and ``max_estimated``, plain numbers so that a CUDA graph
    needs no synchronisation). Equal scores may fall either way. Empty clusters are never chosen.

    With ``token_limit_B`` a cluster counts as often as it has tokens, in its rank and in what is
    retrieved: the best clusters that have no more tokens together (one at least), and no more than
    ``retrieved_B`` of them.

    ``bias_BGC`` (float16) is added to the logits of a cluster: what its keys weigh beyond what the
    centroid says. It counts in the rank, too.

    ``logit_BHC`` is float32; entries of empty clusters and at or beyond ``num_clusters_B`` are
    undefined.
    """
    groups, capacity = args.size_BGC.shape[1:3]
    q_BGND = args.q_BHD.unflatten(1, (groups, -1))
    centroid = decode(args.centroid_BGCD)[:, :, :capacity]
    logit = logits(q_BGND, centroid, args.scale, args.softcap)
    if args.bias_BGC is not None:
        logit = logit + args.bias_BGC.float()[:, :, None]
    cluster = torch.arange(capacity, device=logit.device)
    exists = (cluster < args.num_clusters_B[:, None, None]) & (args.size_BGC > 0)
    weight = 0.0 if args.token_limit_B is None else args.size_BGC.clamp_min(1).log()[:, :, None]
    masked = (logit + weight).masked_fill(~exists[:, :, None], torch.finfo(torch.float32).min)
    score = masked.softmax(-1).sum(2).masked_fill(~exists, -1.0)
    most = min(capacity, args.max_retrieved + args.max_estimated)
    value, cluster = score.topk(most, -1)
    cluster = cluster.int().masked_fill(value < 0, -1)
    rank = torch.arange(most, device=logit.device)
    first = args.retrieved_B[:, None, None]
    if args.token_limit_B is not None:
        first = within_limit(args, cluster, first)
    last = first + args.estimated_B[:, None, None]
    retrieved = compact(cluster, rank < first, args.max_retrieved)
    estimated = compact(cluster, (rank >= first) & (rank < last), args.max_estimated)
    return retrieved, estimated, logit.flatten(1, 2)


def within_limit(args: SelectArgs, cluster_BGK: Tensor, retrieved_B11: Tensor) -> Tensor:
    """How many of the clusters, best first (-1 padded), the limits let through, ``BG1``."""
    assert args.token_limit_B is not None
    size = args.size_BGC.gather(-1, cluster_BGK.clamp_min(0).long()) * (cluster_BGK >= 0)
    inside = (size.cumsum(-1) <= args.token_limit_B[:, None, None]).sum(-1, keepdim=True)
    return torch.minimum(inside.clamp_min(1), retrieved_B11)


def compact(cluster_BGK: Tensor, keep_BGK: Tensor, width: int) -> Tensor:
    """The kept entries, moved to the front of ``width`` places; -1 elsewhere."""
    order = keep_BGK.expand_as(cluster_BGK).int().sort(dim=-1, descending=True, stable=True)
    kept = cluster_BGK.gather(-1, order.indices).masked_fill(order.values == 0, -1)
    missing = width - kept.shape[-1]
    return torch.nn.functional.pad(kept, (0, max(0, missing)), value=-1)[..., :width].contiguous()
