"""Positional store over two tiers: a pool that may be on the host, and a fast copy of its pages.

Every token is written through to the pool; a ring of the newest tokens stays on the model's
device, so that the local window never waits for the pool and pages are complete before anybody
copies them. On a CPU-only machine both tiers are host memory and everything else is the same.
"""

from __future__ import annotations

import torch
from torch import Tensor

from retrobench.core.shapes import Footprint, KVShape
from retrobench.memory.page_cache import CacheSize, PageCache, distinct, make_cache
from retrobench.memory.placement import (
    Tiers,
    Traffic,
    allocate,
    free,
    head_index,
    kv_bytes,
    placed,
    vector_bytes,
)

RECENT_TOKENS = 64  # RetroInfer's local window; at least a page


class OffloadStore:
    """Keys and values by position; ``gather`` reads newest tokens, then cached pages, then pool."""

    def __init__(self, shape: KVShape, tiers: Tiers, page_tokens: int) -> None:
        self.shape, self.tiers, self.page_tokens = shape, tiers, page_tokens
        self.slot = {layer: i for i, layer in enumerate(shape.layers)}
        heads = (len(shape.layers), shape.batch, shape.num_kv_heads)
        self.recent = max(RECENT_TOKENS, page_tokens)
        pool, ring = (*heads, _pool_tokens(shape, page_tokens)), (*heads, self.recent)
        self.k_LBGSD = allocate((*pool, shape.head_dim), shape, tiers.place)
        self.v_LBGSD = allocate((*pool, shape.head_dim), shape, tiers.place)
        # zeros: entries that nobody wrote are read as padding
        self.k_LBGWD = allocate((*ring, shape.head_dim), shape, "gpu").zero_()
        self.v_LBGWD = allocate((*ring, shape.head_dim), shape, "gpu").zero_()
        self.cache: PageCache | None = None
        if tiers.cached:
            self.cache = make_cache(tiers, shape, _cache_size(shape, tiers, page_tokens))
        self.same_device = self.k_LBGSD.device == self.k_LBGWD.device
        self.staged: dict[int, tuple[Tensor, Tensor]] = {}  # prompts on the device, until offload
        self.offloaded: set[int] = set()
        self.lengths = [0] * len(shape.layers)
        self._reads = [[0, 0] for _ in shape.layers]  # pages, tokens read without a cache

    @staticmethod
    def plan(shape: KVShape, tiers: Tiers, page_tokens: int) -> Footprint:
        """Bytes before allocation."""
        held = placed(kv_bytes(shape, _pool_tokens(shape, page_tokens)), tiers.place)
        held += Footprint(device=kv_bytes(shape, max(RECENT_TOKENS, page_tokens)))
        if tiers.cached:
            held += PageCache.plan(shape, _cache_size(shape, tiers, page_tokens), tiers)
        return held

    def append(self, layer: int, k_BGTD: Tensor, v_BGTD: Tensor) -> None:
        """Add T tokens. A prompt's stay on the device until ``offload``, for its attention."""
        i = self.slot[layer]
        start, end = self.lengths[i], self.lengths[i] + k_BGTD.shape[2]
        assert end <= self.shape.max_tokens, "session longer than planned"
        self.lengths[i] = end
        k, v = self.k_LBGSD[i], self.v_LBGSD[i]
        if not self.same_device and layer not in self.offloaded:
            if layer not in self.staged:
                size = (*k.shape[:2], self.shape.prompt_tokens, k.shape[3])
                self.staged[layer] = k_BGTD.new_empty(size), v_BGTD.new_empty(size)
            k, v = self.staged[layer]
        k[:, :, start:end], v[:, :, start:end] = k_BGTD.to(k.device), v_BGTD.to(v.device)
        first = max(start, end - self.recent)
        place = torch.arange(first, end, device=k_BGTD.device) % self.recent
        self.k_LBGWD[i].index_copy_(2, place, k_BGTD[:, :, first - start :])
        self.v_LBGWD[i].index_copy_(2, place, v_BGTD[:, :, first - start :])

    def offload(self, layer: int) -> None:
        """Move a layer's prompt from the device to the pool."""
        i = self.slot[layer]
        self.offloaded.add(layer)
        if layer in self.staged:
            k, v = self.staged.pop(layer)
            end = self.lengths[i]
            self.k_LBGSD[i, :, :, :end] = k[:, :, :end].to(self.k_LBGSD.device)
            self.v_LBGSD[i, :, :, :end] = v[:, :, :end].to(self.v_LBGSD.device)

    def keys(self, layer: int) -> Tensor:
        """All keys, ``k_BGSD``: on the device until ``offload``, then in the pool."""
        i = self.slot[layer]
        held = self.staged[layer][0] if layer in self.staged else self.k_LBGSD[i]
        return held[:, :, : self.lengths[i]]

    def values(self, layer: int) -> Tensor:
        """All values, ``v_BGSD``: on the device until ``offload``, then in the pool."""
        i = self.slot[layer]
        held = self.staged[layer][1] if layer in self.staged else self.v_LBGSD[i]
        return held[:, :, : self.lengths[i]]

    def gather(self, layer: int, token_BGR: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values at positions, from the fastest place that has them."""
        i, groups = self.slot[layer], self.shape.num_kv_heads
        index = head_index(token_BGR, groups)
        newest = token_BGR >= self.lengths[i] - self.recent
        page = torch.where((token_BGR >= 0) & ~newest, token_BGR // self.page_tokens, -1)
        asked_BGN = distinct(page.reshape(page.shape[0], groups, -1))
        hit, at = torch.zeros_like(newest), torch.zeros_like(token_BGR)
        if self.cache is None:
            num_pages = int((asked_BGN >= 0).sum())
            self._reads[i][0] += num_pages
            self._reads[i][1] += num_pages * self.page_tokens
        else:
            self.cache.lookup(layer, asked_BGN, torch.full_like(asked_BGN, self.page_tokens))
            row, head, _ = index
            slot = self.cache.view(layer).slot_BGP[row, head, page.clamp_min(0)]
            hit = (slot >= 0) & (page >= 0)
            at = slot.clamp_min(0).long() * self.page_tokens + token_BGR % self.page_tokens
        found = []
        for kind in range(2):
            pool = (self.k_LBGSD, self.v_LBGSD)[kind][i]
            ring = (self.k_LBGWD, self.v_LBGWD)[kind][i]
            out = ring[index[0], index[1], index[2] % self.recent]
            if self.cache is not None:
                slots = (self.cache.k_LBGQD, self.cache.v_LBGQD)[kind][self.cache.index[layer]]
                out = torch.where(hit[..., None], slots[index[0], index[1], at], out)
            row, head, place = torch.nonzero((page >= 0) & ~hit, as_tuple=True)
            source = (row, index[1].expand_as(page)[row, head, place], token_BGR[row, head, place])
            read = pool[tuple(x.to(pool.device) for x in source)]
            out[row, head, place] = read.to(out.device)
            found.append(out)
        if self.cache is not None:
            self.cache.admit(layer, self.k_LBGSD[i], self.v_LBGSD[i])
        return found[0], found[1]

    def traffic(self) -> list[Traffic]:
        """Pages since the last call; without a cache every page is a miss."""
        if self.cache is not None:
            return self.cache.traffic()
        unit, reads = vector_bytes(self.shape), self._reads
        self._reads = [[0, 0] for _ in self.shape.layers]
        return [
            Traffic(layer=layer, hits=0, misses=pages, evictions=0, h2d_bytes=tokens * unit)
            for layer, (pages, tokens) in zip(self.shape.layers, reads, strict=True)
        ]

    def footprint(self) -> Footprint:
        """Bytes of pool, ring and cache."""
        held = placed(self.k_LBGSD.nbytes + self.v_LBGSD.nbytes, self.tiers.place)
        held += Footprint(device=self.k_LBGWD.nbytes + self.v_LBGWD.nbytes)
        return held if self.cache is None else held + self.cache.footprint()

    def close(self) -> None:
        """Free everything."""
        for pool in (self.k_LBGSD, self.v_LBGSD):
            free(pool, self.shape, self.tiers.place)
        empty = torch.empty(0)
        self.k_LBGSD, self.v_LBGSD, self.k_LBGWD, self.v_LBGWD = empty, empty, empty, empty
        self.staged.clear()
        if self.cache is not None:
            self.cache.close()


def _pool_tokens(shape: KVShape, page_tokens: int) -> int:
    return -(-shape.max_tokens // page_tokens) * page_tokens


def _cache_size(shape: KVShape, tiers: Tiers, page_tokens: int) -> CacheSize:
    return CacheSize.of(tiers, _pool_tokens(shape, page_tokens), shape.max_tokens, page_tokens)
