"""Where each token goes when keys and values are stored in cluster order, and its placement."""

from typing import NamedTuple

import torch
from torch import Tensor

from retrobench_kernels.dispatch import op


class Layout(NamedTuple):
    """Cluster order of the S tokens of G heads.

    ``target_GS`` (int64) is the pool position of each token; cluster c holds positions
    ``first_GC[c] <= s < first_GC[c] + size_GC[c]`` (int32). ``used_G`` (int64) positions are in
    use, padding between clusters included.
    """

    target_GS: Tensor
    first_GC: Tensor
    size_GC: Tensor
    used_G: Tensor


def cluster_layout(cluster_GS: Tensor, num_clusters: int, page_tokens: int = 1) -> Layout:
    """Sort tokens by cluster, each cluster starting at a multiple of ``page_tokens``.

    Tokens of a cluster keep their order. Positions stay below
    ``S + num_clusters * (page_tokens - 1)``.
    """
    cluster_GS = cluster_GS.long()
    size = cluster_GS.new_zeros(cluster_GS.shape[0], num_clusters)
    size.scatter_add_(1, cluster_GS, torch.ones_like(cluster_GS))
    aligned = (size + page_tokens - 1) // page_tokens * page_tokens
    first = aligned.cumsum(-1) - aligned
    order = cluster_GS.argsort(dim=-1, stable=True)
    packed = size.cumsum(-1) - size  # start of each cluster in the sorted order
    rank = torch.arange(cluster_GS.shape[1], device=cluster_GS.device).expand_as(order)
    sorted_cluster = cluster_GS.gather(-1, order)
    place = rank - packed.gather(-1, sorted_cluster) + first.gather(-1, sorted_cluster)
    target = torch.empty_like(order).scatter_(-1, order, place)
    return Layout(target, first.int(), size.int(), aligned.sum(-1))


@op
def place_tokens(kv_GSD: Tensor, layout: Layout, pool_GSD: Tensor) -> None:
    """Write the tokens into the pool at their positions; the padding between keeps its content.

    The pool may be on another device than the tokens: they move there first.
    """
    kv, target = (x.to(pool_GSD.device) for x in (kv_GSD, layout.target_GS))
    pool_GSD.scatter_(1, target[..., None].expand_as(kv), kv)
