"""Where each token goes when keys and values are stored in cluster order, and its placement."""

from typing import NamedTuple

import torch
from torch import Tensor

from retrobench_kernels.dispatch import op


class Layout(NamedTuple):
    """Cluster order of the S tokens of G heads.

    ``target_GS`` (int64) is the pool position of each token; cluster c holds positions
    ``first_GC[c] <= s < first_GC[c] + size_GC[c]`` (int32), without gaps. Its pages in a cache are
    ``page_GC[c]`` (int32) and on, ``pages_G`` (int64) of all clusters. Positions begin at
    ``start``.
    """

    target_GS: Tensor
    first_GC: Tensor
    size_GC: Tensor
    page_GC: Tensor
    pages_G: Tensor
    start: int = 0


def cluster_layout(
    cluster_GS: Tensor, num_clusters: int, page_tokens: int = 1, start: int = 0
) -> Layout:
    """Sort tokens by cluster; tokens of a cluster keep their order.

    A page has ``page_tokens`` tokens of one cluster, the cluster's last page fewer.
    """
    cluster_GS = cluster_GS.long()
    size = cluster_GS.new_zeros(cluster_GS.shape[0], num_clusters)
    size.scatter_add_(1, cluster_GS, torch.ones_like(cluster_GS))
    order = cluster_GS.argsort(dim=-1, stable=True)
    rank = torch.arange(start, start + cluster_GS.shape[1], device=order.device).expand_as(order)
    target = torch.empty_like(order).scatter_(-1, order, rank)
    first, pages = size.cumsum(-1) - size + start, (size + page_tokens - 1) // page_tokens
    page = pages.cumsum(-1) - pages
    return Layout(target, first.int(), size.int(), page.int(), pages.sum(-1), start)


@op
def place_tokens(kv_GSD: Tensor, layout: Layout, pool_GSD: Tensor) -> None:
    """Write the tokens into the pool at their positions; the padding between keeps its content.

    The pool may be on another device than the tokens: they move there first.
    """
    kv, target = (x.to(pool_GSD.device) for x in (kv_GSD, layout.target_GS))
    pool_GSD.scatter_(1, target[..., None].expand_as(kv), kv)
