"""Random clustered keys and values with the awkward cases that kernels must survive.

Empty clusters, clusters of one, rows of different lengths, and NaN in every place that an op must
not read.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from retrobench_kernels.wave_attention.zones import Pool, Steady
from torch import Tensor


def page_spans(pool: Pool, page_tokens: int, row: int, head: int) -> dict[int, slice]:
    """The tokens of every page of a head's clusters, as a slice of the pool."""
    found, pages = {}, pool.first_page(page_tokens)
    for c, size in enumerate(pool.size_BGC[row, head].tolist()):
        first, page = int(pool.first_BGC[row, head, c]), int(pages[row, head, c])
        for j in range(-(-size // page_tokens)):
            start = first + j * page_tokens
            found[page + j] = slice(start, min(first + size, start + page_tokens))
    return found


def num_pages(pool: Pool, page_tokens: int) -> int:
    """Pages of the head that has most."""
    end = pool.first_page(page_tokens) + (pool.size_BGC + page_tokens - 1) // page_tokens
    return int(end.max())


@dataclass
class Clustered:
    q: Tensor
    centroid: Tensor
    value_sum: Tensor
    logit: Tensor
    pool: Pool
    steady: Steady
    num_clusters: Tensor
    retrieved: Tensor
    estimated: Tensor
    page_tokens: int

    def slots(self, fraction: float) -> Tensor:
        """A page table that holds a random share of the pages, each in a slot of its own."""
        batch, groups = self.pool.k_BGSD.shape[:2]
        pages = num_pages(self.pool, self.page_tokens)
        slot = torch.full((batch, groups, pages), -1, dtype=torch.int32)
        count = int(fraction * pages)
        for row in range(batch):
            for g in range(groups):
                slot[row, g, torch.randperm(pages)[:count]] = torch.randperm(count).int()
        return slot

    def fill_cache(self, slot: Tensor) -> tuple[Tensor, Tensor]:
        """Cache tensors that hold the pages of ``slot``; free slots hold NaN."""
        batch, groups, _, dim = self.pool.k_BGSD.shape
        pages, page = slot.shape[-1], self.page_tokens
        caches = []
        for source in (self.pool.k_BGSD, self.pool.v_BGSD):
            cache = torch.full((batch, groups, pages * page, dim), torch.nan, dtype=source.dtype)
            for row in range(batch):
                for g in range(groups):
                    for p, span in page_spans(self.pool, page, row, g).items():
                        if (s := int(slot[row, g, p])) >= 0:
                            part = source[row, g, span]
                            cache[row, g, s * page : s * page + len(part)] = part
            caches.append(cache)
        return caches[0], caches[1]

    def only_uncached(self, slot: Tensor) -> Pool:
        """The pool with NaN in place of cached pages."""
        k, v = self.pool.k_BGSD.clone(), self.pool.v_BGSD.clone()
        for row in range(len(k)):
            for g in range(k.shape[1]):
                for page, span in page_spans(self.pool, self.page_tokens, row, g).items():
                    if int(slot[row, g, page]) >= 0:
                        k[row, g, span] = v[row, g, span] = torch.nan
        return self.pool._replace(k_BGSD=k, v_BGSD=v)


def clustered(
    heads: int,
    groups: int,
    dim: int,
    *,
    batch: int = 2,
    clusters: int = 17,
    dtype: torch.dtype = torch.float32,
    page_tokens: int = 1,
    retrieved: int = 4,
    estimated: int = 6,
    steady: int = 7,
    largest: int = 9,
) -> Clustered:
    """Fresh random inputs; the last row has fewer clusters and fewer steady tokens."""
    capacity = clusters + 3  # a growing index has room beyond its clusters
    num_clusters = torch.full((batch,), clusters, dtype=torch.int32)
    num_clusters[-1] = max(1, clusters - 4)
    size = torch.randint(0, largest + 1, (batch, groups, capacity)).int()
    size[..., 0], size[..., min(1, capacity - 1)] = 0, 1
    size[..., min(2, capacity - 1)] = largest
    size = size * (torch.arange(capacity) < num_clusters[:, None, None])
    pages = (size + page_tokens - 1) // page_tokens
    first, page = ((x.cumsum(-1) - x).int() for x in (size, pages))
    tokens = int(size.sum(-1).max()) + page_tokens
    k, v = (torch.randn(batch, groups, tokens, dim).to(dtype) for _ in range(2))
    inside = torch.zeros(batch, groups, tokens, dtype=torch.bool)
    centroid = torch.full((batch, groups, capacity, dim), torch.nan)
    value_sum = centroid.clone()
    for row in range(batch):
        for g in range(groups):
            for c in range(capacity):
                span = slice(int(first[row, g, c]), int(first[row, g, c] + size[row, g, c]))
                if size[row, g, c]:
                    inside[row, g, span] = True
                    centroid[row, g, c] = k[row, g, span].float().mean(0)
                    value_sum[row, g, c] = v[row, g, span].float().sum(0)
    for x in (k, v):
        x.masked_fill_(~inside[..., None], torch.nan)
    q = torch.randn(batch, heads, dim).to(dtype)
    count = torch.full((batch,), steady, dtype=torch.int32)
    count[-1] = max(1, steady - 3) if steady else 0
    k_steady, v_steady = (torch.randn(batch, groups, steady + 2, dim).to(dtype) for _ in range(2))
    beyond = torch.arange(steady + 2) >= count[:, None]
    for x in (k_steady, v_steady):
        x.masked_fill_(beyond[:, None, :, None], torch.nan)
    group = heads // groups
    logit = torch.einsum("bgnd,bgcd->bgnc", q.float().unflatten(1, (groups, group)), centroid) * 0.4
    chosen = torch.full((batch, groups, retrieved + estimated), -1, dtype=torch.int32)
    for row in range(batch):
        for g in range(groups):
            order = torch.randperm(int(num_clusters[row])).int()[: retrieved + estimated]
            chosen[row, g, : len(order)] = order
    if retrieved:
        chosen[..., retrieved - 1] = -1
    return Clustered(
        q=q,
        centroid=centroid.to(dtype),
        value_sum=value_sum.to(dtype),
        logit=logit.flatten(1, 2).contiguous(),
        pool=Pool(k, v, first, size.int(), page if page_tokens > 1 else None),
        steady=Steady(k_steady, v_steady, count),
        num_clusters=num_clusters,
        retrieved=chosen[..., :retrieved].contiguous(),
        estimated=chosen[..., retrieved:].contiguous(),
        page_tokens=page_tokens,
    )
