"""A pool of keys and values behind a GPU block cache, and the tokens that are not in it yet.

``PagedPool`` is the memory: per layer a *pool* on the host or the device, a small *recent* zone on
the model's device, and optionally a block cache of the pool's pages. Who decides the pool's order
stands above it: ``pool.PooledStore`` keeps positions, RetroInfer's wave buffer keeps clusters. On a
CPU-only machine both tiers are host memory and everything else is the same.
"""

from dataclasses import dataclass

import torch
from retrobench_kernels.wave_attention import Steady
from torch import Tensor

from retrobench.core.method import Probe
from retrobench.core.shapes import Footprint, KVShape
from retrobench.memory.device_cache import DeviceCache
from retrobench.memory.host_cache import HostCache
from retrobench.memory.page_cache import CacheSize, PageCache
from retrobench.memory.placement import ResolvedPlacement, allocate, kv_bytes, placed
from retrobench.memory.store import KVStore


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolSize:
    """Tokens per row and KV head of a layer: in the pool, in the recent zone, in a page.

    ``part_pages``: pages that may be part empty, because a page has tokens of one cluster only.
    """

    pool_tokens: int
    recent_tokens: int
    page_tokens: int
    part_pages: int = 0

    def cache(self, placement: ResolvedPlacement, shape: KVShape) -> CacheSize:
        """The block cache: ``cache_frac`` of the session's tokens."""
        slots = max(1, round(placement.cache_frac * shape.max_tokens / self.page_tokens))
        pages = -(-self.pool_tokens // self.page_tokens) + self.part_pages
        return CacheSize(pages=pages, slots=slots, page_tokens=self.page_tokens)


class PagedPool(KVStore):
    """Pool, recent zone and block cache of all layers.

    Memory of a layer is allocated when the layer is built, so that a prompt given away layer by
    layer is never held twice. The first ``sink_tokens`` of the recent zone never leave it.
    """

    def __init__(
        self, shape: KVShape, placement: ResolvedPlacement, size: PoolSize, sink_tokens: int = 0
    ) -> None:
        super().__init__(shape)
        self.placement, self.sink_tokens = placement, sink_tokens
        self.pool_tokens, self.page_tokens = size.pool_tokens, size.page_tokens
        self.recent_tokens = size.recent_tokens
        self._forget()
        layers = len(shape.layers)
        self.count_LB = torch.zeros(layers, shape.batch, dtype=torch.int32, device=shape.device)
        self.row_B = torch.arange(shape.batch, device=shape.device)
        self.count = [[0] * shape.batch for _ in shape.layers]  # the same, known to the host
        self.cache: PageCache | None = None
        if placement.manager == "device":
            self.cache = DeviceCache(shape, size.cache(placement, shape), placement.record)
        elif placement.manager == "host":
            slots = size.cache(placement, shape)
            self.cache = HostCache(shape, slots, placement.eviction, placement.record)

    def _forget(self) -> None:
        count, nothing = len(self.shape.layers), torch.empty(0)
        self.k_pool, self.v_pool = [nothing] * count, [nothing] * count  # BGSD
        self.k_recent, self.v_recent = [nothing] * count, [nothing] * count  # BGWD
        self.count_LB = nothing

    @staticmethod
    def plan_pool(shape: KVShape, placement: ResolvedPlacement, size: PoolSize) -> Footprint:
        """Bytes before allocation."""
        held = placed(kv_bytes(shape, size.pool_tokens), placement.place)
        held += Footprint(device=kv_bytes(shape, size.recent_tokens))
        held += Footprint(device=4 * len(shape.layers) * shape.batch)
        if placement.cached:
            kind = DeviceCache if placement.manager == "device" else HostCache
            held += kind.plan(shape, size.cache(placement, shape))
        return held

    def footprint(self) -> Footprint:
        """Bytes of pool, recent zone, cache and maps."""
        pools = sum(part.nbytes for part in (*self.k_pool, *self.v_pool))
        recent = sum(part.nbytes for part in (*self.k_recent, *self.v_recent))
        held = placed(pools, self.placement.place)
        held += super().footprint() + Footprint(device=recent + self.count_LB.nbytes)
        return held if self.cache is None else held + self.cache.footprint()

    def allocate(self, i: int, pool_tokens: int | None = None) -> None:
        """Memory of a layer. What nobody writes may be read as padding, so recent is zeroed."""
        head = (self.shape.batch, self.shape.num_kv_heads)
        size = (*head, pool_tokens or self.pool_tokens, self.shape.head_dim)
        self.k_pool[i], self.v_pool[i] = (
            allocate(size, self.shape, self.placement.place) for _ in "kv"
        )
        size = (*head, self.recent_tokens, self.shape.head_dim)
        self.k_recent[i], self.v_recent[i] = (
            allocate(size, self.shape, "gpu").zero_() for _ in "kv"
        )

    def set_recent(self, i: int, row: int, k_GSD: Tensor, v_GSD: Tensor) -> None:
        """Put a row's tokens that are not in the pool into its recent zone."""
        count = k_GSD.shape[1]
        self.k_recent[i][row, :, :count] = k_GSD
        self.v_recent[i][row, :, :count] = v_GSD
        self._recount(i, row, count)

    def append_recent(self, i: int, k_BGTD: Tensor, v_BGTD: Tensor, static: bool = False) -> None:
        """Add one token to every row's recent zone.

        ``static``: with nothing that a captured graph could not repeat; ``count_recent`` is then
        the host's part.
        """
        count = self.count[i][0]
        if static or any(other != count for other in self.count[i]):
            place_B = self.count_LB[i].long()
            self.k_recent[i][self.row_B, :, place_B] = k_BGTD[:, :, 0]
            self.v_recent[i][self.row_B, :, place_B] = v_BGTD[:, :, 0]
        else:  # one copy, where the host knows the place
            self.k_recent[i][:, :, count] = k_BGTD[:, :, 0]
            self.v_recent[i][:, :, count] = v_BGTD[:, :, 0]
        self.count_LB[i] += 1
        if not static:
            self.count_recent(i)

    def count_recent(self, i: int) -> None:
        """The host's part of ``append_recent``."""
        self.lengths[i] += 1
        self.count[i] = [count + 1 for count in self.count[i]]

    def pop_oldest(self, i: int, row: int, tokens: int) -> tuple[Tensor, Tensor]:
        """Remove the oldest tokens after the sinks from a row's recent zone: ``k_GSD, v_GSD``."""
        count, sinks = self.count[i][row], self.sink_tokens
        taken, found = slice(sinks, sinks + tokens), []
        for recent in (self.k_recent[i][row], self.v_recent[i][row]):
            found.append(recent[:, taken].clone())
            rest = recent[:, taken.stop : count].clone()
            recent[:, sinks : sinks + rest.shape[1]] = rest
        self._recount(i, row, count - tokens)
        return found[0], found[1]

    def steady(self, i: int, static: bool = False) -> Steady:
        """The recent zone of a layer for kernels, cut to its longest row unless ``static``."""
        longest = self.recent_tokens if static else max(self.count[i])
        k, v = self.k_recent[i][:, :, :longest], self.v_recent[i][:, :, :longest]
        return Steady(k, v, self.count_LB[i])

    def report_counts(self, probe: Probe) -> None:
        """Cache accesses and copies since the last call."""
        if self.cache is not None:
            self.cache.report_counts(probe)

    def close(self) -> None:
        super().close()
        self._forget()
        if self.cache is not None:
            self.cache.close()

    def _recount(self, i: int, row: int, count: int) -> None:
        assert count <= self.recent_tokens, "recent zone smaller than planned"
        self.count[i][row] = count
        self.count_LB[i, row] = count
