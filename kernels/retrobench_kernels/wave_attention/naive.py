"""RetroInfer's tripartite attention in plain torch (paper 4.2)."""

from __future__ import annotations

import torch
from torch import Tensor

from retrobench_kernels.dense_decode.naive import logits, softmax_sum
from retrobench_kernels.wave_attention.zones import Estimation, PageCache, Pool, Steady


def wave_attention(
    q_BHD: Tensor,
    steady: Steady,
    pool: Pool,
    retrieved_BGR: Tensor,
    scale: float,
    *,
    estimation: Estimation | None = None,
    cache: PageCache | None = None,
    softcap: float = 0.0,
) -> tuple[Tensor, Tensor]:
    """One softmax over the steady zone, the tokens of retrieved clusters, and estimated clusters.

    ``retrieved_BGR`` is int32, -1: none. Returns ``(o_BHD, lse_BH)``: the output in the dtype of
    q and the log of the whole denominator in float32. Nothing to attend gives 0 and -inf.
    """
    batch, heads, dim = q_BHD.shape
    groups = pool.k_BGSD.shape[1]
    q_BGND = q_BHD.reshape(batch, groups, heads // groups, dim)
    inside = torch.arange(steady.k_BGWD.shape[2], device=q_BHD.device) < steady.count_B[:, None]
    token_BGX = cluster_tokens(pool, retrieved_BGR)
    k_BGXD, v_BGXD = gather_tokens(pool, token_BGX, cache)
    parts = [
        (logits(q_BGND, steady.k_BGWD, scale, softcap), inside[:, None, None], steady.v_BGWD),
        (logits(q_BGND, k_BGXD, scale, softcap), (token_BGX >= 0)[:, :, None], v_BGXD),
    ]
    results = [softmax_sum(x.masked_fill(~keep, -torch.inf), v) for x, keep, v in parts]
    if estimation is not None:
        results.append(_estimated(estimation, pool.size_BGC, groups))
    lse = torch.stack([part_lse for _, part_lse in results]).logsumexp(0)
    safe = lse.clamp_min(torch.finfo(torch.float32).min)
    scaled = [part * torch.exp(part_lse - safe)[..., None] for part, part_lse in results]
    out = torch.stack(scaled).sum(0)
    return out.reshape(batch, heads, -1).to(q_BHD.dtype), lse.reshape(batch, heads)


def cluster_tokens(pool: Pool, cluster_BGR: Tensor) -> Tensor:
    """Pool positions of the tokens of clusters, int64, -1 padded, ``token_BGX``."""
    index = cluster_BGR.clamp_min(0).long()
    size = pool.size_BGC.gather(-1, index) * (cluster_BGR >= 0)
    first = pool.first_BGC.gather(-1, index)
    largest = int(size.max()) if size.numel() else 0
    offset = torch.arange(largest, device=size.device)
    token = (first[..., None] + offset).masked_fill(offset >= size[..., None], -1)
    return token.long().flatten(2)


def gather_tokens(pool: Pool, token_BGX: Tensor, cache: PageCache | None) -> tuple[Tensor, Tensor]:
    """Keys and values at pool positions, from the cache where it has their page."""
    index = token_BGX.clamp_min(0)[..., None].expand(-1, -1, -1, pool.k_BGSD.shape[-1])
    k, v = pool.k_BGSD.gather(2, index), pool.v_BGSD.gather(2, index)
    if cache is None:
        return k, v
    page = token_BGX.clamp_min(0) // cache.page_tokens
    slot = cache.slot_BGP.gather(-1, page)
    place = (
        slot.clamp_min(0).long() * cache.page_tokens + token_BGX.clamp_min(0) % cache.page_tokens
    )
    place = place[..., None].expand_as(index)
    hit = ((slot >= 0) & (token_BGX >= 0))[..., None]
    return (
        torch.where(hit, cache.k_BGQD.gather(2, place), k),
        torch.where(hit, cache.v_BGQD.gather(2, place), v),
    )


def _estimated(estimation: Estimation, size_BGC: Tensor, groups: int) -> tuple[Tensor, Tensor]:
    cluster_BGE, logit_BHC, value_sum_BGCD = estimation
    index = cluster_BGE.clamp_min(0).long()
    size = size_BGC.gather(-1, index) * (cluster_BGE >= 0)
    logit_BGNC = logit_BHC.unflatten(1, (groups, -1))
    logit = logit_BGNC.gather(-1, index[:, :, None].expand(-1, -1, logit_BGNC.shape[2], -1))
    absent = (size == 0)[:, :, None]
    logit = logit.masked_fill(absent, -torch.inf)
    lse = torch.logsumexp(logit + size[:, :, None].float().clamp_min(1).log(), -1)
    weight = torch.exp(logit - lse.clamp_min(torch.finfo(torch.float32).min)[..., None])
    spread = index[..., None].expand(-1, -1, -1, value_sum_BGCD.shape[-1])
    value_sum = value_sum_BGCD.gather(2, spread).float().masked_fill(absent[:, :, 0, :, None], 0)
    return weight @ value_sum, lse
