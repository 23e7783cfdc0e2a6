"""PooledStore: keys and values in position order over two tiers, and the choice of a store."""

import torch
from retrobench_kernels.wave_attention import Pages
from torch import Tensor

from retrobench.core.method import Probe, PromptLayer
from retrobench.core.shapes import Footprint, KVShape
from retrobench.memory.page_cache import distinct, most_asked
from retrobench.memory.paged_pool import PagedPool, PoolSize
from retrobench.memory.placement import PlacementConfig, ResolvedPlacement, vector_bytes
from retrobench.memory.store import KVStore, ResidentStore, head_index

RECENT_TOKENS = 64  # RetroInfer's local window


class PooledStore(PagedPool):
    """Whole pages in the pool, the newest tokens in the recent zone, in position order.

    Spans are gathered: a run may cross from the pool into the recent zone.

    A page enters the pool once it is complete and old enough, so that the local window never waits
    for the pool and a cached page never changes. Slots are positions until ``evict`` or
    ``reorder``. A page that is missed moves whole or, ``by_token``, only what was asked of it; then
    the pages asked most are the first to enter the cache.
    """

    def __init__(
        self, shape: KVShape, placement: ResolvedPlacement, by_token: bool = False
    ) -> None:
        super().__init__(shape, placement, _size(shape, placement.page_tokens))
        self.by_token = by_token
        self.in_pool = [0] * len(shape.layers)  # slots before this one are in the pool
        self._read = [[0, 0] for _ in shape.layers]  # without a cache: pages, tokens

    @staticmethod
    def plan(shape: KVShape, placement: ResolvedPlacement) -> Footprint:
        """Bytes before allocation."""
        return PagedPool.plan_pool(shape, placement, _size(shape, placement.page_tokens))

    def load(self, layer: int, prompt: PromptLayer) -> None:
        """Old pages to the pool, the rest to the recent zone."""
        i = self.index[layer]
        self.lengths[i] = prompt.k_BGSD.shape[2]
        self._fill(i, self.pool_tokens, prompt.k_BGSD, prompt.v_BGSD)

    def _fill(self, i: int, pool_tokens: int, k_BGSD: Tensor, v_BGSD: Tensor) -> None:
        """Tokens in slot order into fresh memory."""
        self.allocate(i, pool_tokens)
        old = max(0, k_BGSD.shape[2] - RECENT_TOKENS) // self.page_tokens * self.page_tokens
        self.in_pool[i] = old
        for pool, part in ((self.k_pool[i], k_BGSD), (self.v_pool[i], v_BGSD)):
            self.offload.copy(pool[:, :, :old], part[:, :, :old], aside=True)
        for row in range(self.shape.batch):
            self.set_recent(i, row, k_BGSD[row, :, old:], v_BGSD[row, :, old:])

    def append(self, layer: int, k_BGTD: Tensor, v_BGTD: Tensor) -> None:
        """Add one token; the oldest page of a full recent zone moves to the pool."""
        i = self.index[layer]
        assert self.lengths[i] < self.shape.max_tokens, "session longer than planned"
        if self.count[i][0] == self.recent_tokens:
            start, end = self.in_pool[i], self.in_pool[i] + self.page_tokens
            for row in range(self.shape.batch):
                k_GSD, v_GSD = self.pop_oldest(i, row, self.page_tokens)
                self.offload.copy(self.k_pool[i][row, :, start:end], k_GSD)
                self.offload.copy(self.v_pool[i][row, :, start:end], v_GSD)
            self.in_pool[i] = end
        self.map.append(i, self.num_used(i), self.lengths[i], 1)
        self.append_recent(i, k_BGTD, v_BGTD)

    def num_used(self, i: int) -> int:
        return self.in_pool[i] + self.count[i][0]

    def keys(self, layer: int) -> Tensor:
        """All keys in slot order, copied together where the pool lives."""
        return self._whole(self.k_pool, self.k_recent, layer)

    def values(self, layer: int) -> Tensor:
        """All values in slot order, copied together where the pool lives."""
        return self._whole(self.v_pool, self.v_recent, layer)

    def _whole(self, pool: list[Tensor], recent: list[Tensor], layer: int) -> Tensor:
        i = self.index[layer]
        self.offload.finish()
        newest = recent[i][:, :, : self.count[i][0]].to(pool[i].device)
        return torch.cat([pool[i][:, :, : self.in_pool[i]], newest], 2)

    def gather(self, layer: int, token_BGR: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values at positions, from the fastest place that has them."""
        i = self.index[layer]
        self.offload.finish()
        slot_BGR = self.map.slots(i, self.num_used(i), token_BGR)
        row, head, _ = head_index(slot_BGR, self.shape.num_kv_heads)
        pooled = (slot_BGR >= 0) & (slot_BGR < self.in_pool[i])
        page = torch.where(pooled, slot_BGR // self.page_tokens, -1)
        hit, at = self._lookup(layer, page, row, head)
        at = at * self.page_tokens + slot_BGR % self.page_tokens
        b, h, r = torch.nonzero(pooled & ~hit, as_tuple=True)
        missed = (b, head.expand_as(page)[b, h, r], slot_BGR[b, h, r])
        found = []
        for kind in range(2):
            pool = (self.k_pool, self.v_pool)[kind][i]
            recent = (self.k_recent, self.v_recent)[kind][i]
            newest = (slot_BGR - self.in_pool[i]).clamp(0, self.recent_tokens - 1)
            out = recent[row, head, newest]
            if self.cache is not None:
                cached = (self.cache.k_LBGQD, self.cache.v_LBGQD)[kind][i]
                out = torch.where(hit[..., None], cached[row, head, at], out)
            out[b, h, r] = pool[tuple(x.to(pool.device) for x in missed)].to(out.device)
            found.append(out)
        if self.cache is not None:
            self.cache.admit(layer, self.k_pool[i], self.v_pool[i])
        return found[0], found[1]

    def _lookup(self, layer: int, page: Tensor, row: Tensor, head: Tensor) -> tuple[Tensor, Tensor]:
        """Whether each token's page is cached, and in which slot of the cache."""
        asked = page.reshape(page.shape[0], self.shape.num_kv_heads, -1)
        if self.by_token:
            pages_BGN, tokens_BGN = most_asked(asked)
        else:
            pages_BGN = distinct(asked)
            tokens_BGN = torch.full_like(pages_BGN, self.page_tokens)
        if self.cache is None:
            real, read = pages_BGN >= 0, self._read[self.index[layer]]
            read[0], read[1] = read[0] + int(real.sum()), read[1] + int(tokens_BGN[real].sum())
            return torch.zeros_like(page, dtype=torch.bool), torch.zeros_like(page)
        start_BGN = pages_BGN.clamp_min(0) * self.page_tokens
        self.cache.lookup(layer, Pages(pages_BGN, tokens_BGN, start_BGN))
        slot = self.cache.view(layer).slot_BGP[row, head, page.clamp_min(0)]
        return (slot >= 0) & (page >= 0), slot.clamp_min(0).long()

    def evict(self, layer: int, keep_BGR: Tensor) -> None:
        """Keep these positions; the pool shrinks to them and what is still to come."""
        i, kept = self.index[layer], keep_BGR.shape[-1]
        room = self.shape.max_tokens - self.lengths[i]
        k_BGRD, v_BGRD = self.gather(layer, keep_BGR)
        self._fill(i, _whole_pages(kept + room, self.page_tokens), k_BGRD, v_BGRD)
        self.map.place(i, keep_BGR, room)

    def report_counts(self, probe: Probe) -> None:
        """Pages since the last call; without a cache every page is a miss."""
        if self.cache is not None:
            return super().report_counts(probe)
        for layer, i in self.index.items():
            (pages, tokens), self._read[i] = self._read[i], [0, 0]
            probe.count(layer, misses=pages, h2d=tokens * vector_bytes(self.shape))


def _whole_pages(tokens: int, page_tokens: int) -> int:
    return -(-tokens // page_tokens) * page_tokens


def _size(shape: KVShape, page_tokens: int) -> PoolSize:
    return PoolSize(
        pool_tokens=_whole_pages(shape.max_tokens, page_tokens),
        recent_tokens=RECENT_TOKENS + 2 * page_tokens,
        page_tokens=page_tokens,
    )


def make_store(config: PlacementConfig, shape: KVShape, *, by_token: bool = False) -> KVStore:
    """The store that the options ask for."""
    placement = ResolvedPlacement.of(config, shape.device)
    if _one_tier(placement, shape):
        return ResidentStore(shape, placement.place)
    return PooledStore(shape, placement, by_token)


def plan_store(config: PlacementConfig, shape: KVShape) -> Footprint:
    """Bytes of ``make_store`` before allocation."""
    placement = ResolvedPlacement.of(config, shape.device)
    if _one_tier(placement, shape):
        return ResidentStore.plan(shape, placement.place)
    return PooledStore.plan(shape, placement)


def _one_tier(placement: ResolvedPlacement, shape: KVShape) -> bool:
    on_host = torch.device(shape.device).type == "cpu"
    return not placement.cached and (placement.place == "gpu" or on_host)
