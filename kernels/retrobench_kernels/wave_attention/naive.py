"""RetroInfer's tripartite attention in one pass: steady, retrieved and estimated zone (4.2)."""

from collections.abc import Callable

import torch
from torch import Tensor

from retrobench_kernels.codes import decode
from retrobench_kernels.dense_decode.naive import logits, softmax_sum
from retrobench_kernels.dispatch import op_of
from retrobench_kernels.wave_attention.zones import (
    CacheTable,
    Estimation,
    PageCache,
    Pool,
    WaveArgs,
)


@op_of(WaveArgs)
def wave_attention(args: WaveArgs) -> tuple[Tensor, Tensor]:
    """One softmax over the steady zone, the tokens of retrieved clusters, and estimated clusters.

    Returns ``(o_BHD, lse_BH)``: the output in the dtype of q and the log of the whole denominator
    in float32. Nothing to attend gives 0 and -inf. The keys and values of the pool may be in host
    memory while everything else is on the device of q.
    """
    q_BHD, steady, pool, retrieved_BGR, scale, estimation, cache, softcap = args
    groups = pool.k_BGSD.shape[1]
    q_BGND = q_BHD.unflatten(1, (groups, -1))
    inside = torch.arange(steady.k_BGWD.shape[2], device=q_BHD.device) < steady.count_B[:, None]
    token_BGX = cluster_tokens(pool.first_BGC, pool.size_BGC, retrieved_BGR)
    k_BGXD, v_BGXD = gather_tokens(pool, retrieved_BGR, token_BGX, cache)
    parts = [
        (logits(q_BGND, steady.k_BGWD, scale, softcap), inside[:, None, None], steady.v_BGWD),
        (logits(q_BGND, k_BGXD, scale, softcap), (token_BGX >= 0)[:, :, None], v_BGXD),
    ]
    results = [softmax_sum(x.masked_fill(~keep, -torch.inf), v) for x, keep, v in parts]
    if estimation is not None:
        results.append(_estimated(estimation, pool.size_BGC, groups))
        if estimation.total_BGD is not None:
            results.append(estimate_rest(estimation, retrieved_BGR, pool.size_BGC))
    out, lse = merge(results)
    return out.flatten(1, 2).to(q_BHD.dtype), lse.flatten(1, 2)


def cluster_tokens(
    first_BGC: Tensor, size_BGC: Tensor, cluster_BGR: Tensor, largest: int | None = None
) -> Tensor:
    """Positions of the tokens of clusters, int64, -1 padded, ``token_BGX``.

    ``largest``: the most tokens of a cluster, if known; else the host asks the device.
    """
    index = cluster_BGR.clamp_min(0).long()
    size = size_BGC.gather(-1, index) * (cluster_BGR >= 0)
    first = first_BGC.gather(-1, index)
    if largest is None:
        largest = int(size.max()) if size.numel() else 0
    offset = torch.arange(largest, device=size.device)
    token = (first[..., None] + offset).masked_fill(offset >= size[..., None], -1)
    return token.long().flatten(2)


def gather_tokens(
    pool: Pool, cluster_BGR: Tensor, token_BGX: Tensor, cache: PageCache | CacheTable | None
) -> tuple[Tensor, Tensor]:
    """Keys and values of clusters (``cluster_tokens``), from the cache where it has their page."""
    token = token_BGX.clamp_min(0)
    k, v = _rows(pool.k_BGSD, token), _rows(pool.v_BGSD, token)
    if cache is None:
        return k, v
    size, width = cache.page_tokens, token_BGX.shape[-1] // max(1, cluster_BGR.shape[-1])
    nth = torch.arange(width, device=token_BGX.device)  # of the cluster's tokens
    first = pool.first_page(size).gather(-1, cluster_BGR.clamp_min(0).long())
    page = (first[..., None] + nth // size).flatten(2).masked_fill(token_BGX < 0, 0)
    slot = cache.slot_BGP.gather(-1, page.long())
    inside = (nth % size).expand(*cluster_BGR.shape, -1).flatten(2)
    place = slot.clamp_min(0).long() * size + inside
    hit = ((slot >= 0) & (token_BGX >= 0))[..., None]
    k = torch.where(hit, _rows(cache.k_BGQD, place), k)
    return k, torch.where(hit, _rows(cache.v_BGQD, place), v)


def _rows(source_BGSD: Tensor, index_BGX: Tensor) -> Tensor:
    """Rows at the indices, ``BGXD``, on the device of the indices, wherever the source is."""
    index = index_BGX.to(source_BGSD.device)[..., None]
    index = index.expand(-1, -1, -1, source_BGSD.shape[-1])
    return source_BGSD.gather(2, index).to(index_BGX.device)


def _estimated(estimation: Estimation, size_BGC: Tensor, groups: int) -> tuple[Tensor, Tensor]:
    cluster_BGE, logit_BHC = estimation.cluster_BGE, estimation.logit_BHC
    index = cluster_BGE.clamp_min(0).long()
    size = size_BGC.gather(-1, index) * (cluster_BGE >= 0)
    logit_BGNC = logit_BHC.unflatten(1, (groups, -1))
    logit = logit_BGNC.gather(-1, index[:, :, None].expand(-1, -1, logit_BGNC.shape[2], -1))
    absent = (size == 0)[:, :, None]
    logit = logit.masked_fill(absent, -torch.inf)
    lse = torch.logsumexp(logit + size[:, :, None].float().clamp_min(1).log(), -1)
    weight = torch.exp(logit - _finite(lse)[..., None])
    value_sum = _rows(value_sums(estimation, size_BGC), index).float()
    return weight @ value_sum.masked_fill(absent[:, :, 0, :, None], 0), lse


def value_sums(estimation: Estimation, size_BGC: Tensor) -> Tensor:
    """Sums of the values of all clusters, ``BGCD``."""
    vectors = estimation.value_sum_BGCD
    return vectors if isinstance(vectors, Tensor) else decode(vectors) * size_BGC[..., None]


def named_sum(estimation: Estimation, size_BGC: Tensor, named_BGC: Tensor) -> Tensor:
    """Sum of the values of the named clusters (which exist), float32 ``BGD``."""
    sums = value_sums(estimation, size_BGC).float()
    return sums.masked_fill(~named_BGC[..., None], 0).sum(2)


def estimate_rest(
    estimation: Estimation,
    retrieved_BGR: Tensor,
    size_BGC: Tensor,
    summed: Callable[[Estimation, Tensor, Tensor], Tensor] = named_sum,
) -> tuple[Tensor, Tensor]:
    """The clusters that no list names, through one mean value: ``(o_BGND, lse_BGN)``, float32.

    ``summed``: ``named_sum`` or a faster form of it.
    """
    assert estimation.total_BGD is not None
    clusters = size_BGC.shape[-1]
    named = torch.zeros(*size_BGC.shape[:2], clusters + 1, device=size_BGC.device)
    apart = () if estimation.apart_BGR is None else (estimation.apart_BGR,)
    for cluster in (retrieved_BGR, estimation.cluster_BGE, *apart):
        named.scatter_(-1, torch.where(cluster < 0, clusters, cluster).long(), 1.0)
    named, exists = named[..., :clusters].bool(), size_BGC > 0
    left_BGD = estimation.total_BGD - summed(estimation, size_BGC, named & exists)
    size_BGC = size_BGC.clamp_min(0) * ~named
    tokens = size_BGC.sum(-1, keepdim=True)
    mean_BGD = left_BGD / tokens.clamp_min(1)
    logit = estimation.logit_BHC.unflatten(1, (size_BGC.shape[1], -1))
    logit = logit.masked_fill((size_BGC == 0)[:, :, None], -torch.inf)
    lse = (logit + size_BGC[:, :, None].float().clamp_min(1).log()).logsumexp(-1)
    return mean_BGD[:, :, None].expand(-1, -1, lse.shape[-1], -1), lse


def merge(parts: list[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    """Parts of one softmax over disjoint sets, ``(o_BGND, lse_BGN)``, as one."""
    lse = torch.stack([part_lse for _, part_lse in parts]).logsumexp(0)
    safe = _finite(lse)
    return torch.stack([o * torch.exp(x - safe)[..., None] for o, x in parts]).sum(0), lse


def _finite(lse: Tensor) -> Tensor:
    return lse.clamp_min(torch.finfo(torch.float32).min)
