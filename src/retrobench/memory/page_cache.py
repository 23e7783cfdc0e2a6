"""The fast tier: copies of recently used pages, under one interface for every manager.

A step of a layer is ``lookup`` (which pages are here), attention over ``view`` and the slow pool,
``admit`` (write-through: what was missed is copied in, after the attention that needed it). Pages
are written once, so a copy never goes stale. ``HostCache`` keeps the page table on the host (like
the released RetroInfer code), ``DeviceCache`` on the model's device. ``prefetch`` copies pages
in that nobody attends yet.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

import numpy as np
import torch
from retrobench_kernels.wave_attention import PageCache as CacheView
from torch import Tensor

from retrobench.core.shapes import Footprint, KVShape
from retrobench.memory.page_table import PageTable, optimal_hits
from retrobench.memory.placement import Tiers, Traffic, allocate, kv_bytes, vector_bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class CacheSize:
    """Pages of the pool and slots of the fast tier, per row, KV head and layer."""

    pages: int
    slots: int
    page_tokens: int

    @classmethod
    def of(cls, tiers: Tiers, pool_tokens: int, kv_tokens: int, page_tokens: int) -> CacheSize:
        """``cache_frac`` of ``kv_tokens`` tokens in a pool of ``pool_tokens`` positions."""
        slots = max(1, round(tiers.cache_frac * kv_tokens / page_tokens))
        return cls(pages=-(-pool_tokens // page_tokens), slots=slots, page_tokens=page_tokens)


class PageCache(ABC):
    """Slots on the model's device, and counters; subclasses manage which page is where."""

    def __init__(self, shape: KVShape, size: CacheSize, record: bool = False) -> None:
        self.shape, self.size = shape, size
        self.index = {layer: i for i, layer in enumerate(shape.layers)}
        heads = (len(shape.layers), shape.batch, shape.num_kv_heads)
        vectors = (*heads, size.slots * size.page_tokens, shape.head_dim)
        self.k_LBGQD = allocate(vectors, shape, "gpu")
        self.v_LBGQD = allocate(vectors, shape, "gpu")
        self.trace: list[list[np.ndarray]] | None = [[] for _ in shape.layers] if record else None
        self.total = np.zeros(4, np.int64)  # hits, misses, evictions, prefetched; in pages

    @staticmethod
    def plan(shape: KVShape, size: CacheSize, tiers: Tiers) -> Footprint:
        """Bytes before allocation."""
        from retrobench.memory.device_cache import DeviceCache

        kind = DeviceCache if tiers.manager == "device" else HostCache
        slots = Footprint(device=kv_bytes(shape, size.slots * size.page_tokens))
        return slots + kind.plan_table(shape, size)

    def lookup(self, layer: int, page_BGN: Tensor, tokens_BGN: Tensor) -> None:
        """Note the distinct pages (int32, -1 padded) that a step attends, and their tokens."""
        i = self.index[layer]
        if self.trace is not None:
            self.trace[i].append(page_BGN.flatten(0, 1).cpu().numpy().copy())
        self._lookup(i, page_BGN, tokens_BGN)

    @abstractmethod
    def _lookup(self, i: int, page_BGN: Tensor, tokens_BGN: Tensor) -> None: ...

    @abstractmethod
    def view(self, layer: int) -> CacheView:
        """Page table and copies as they are before ``admit``, for kernels."""

    @abstractmethod
    def admit(
        self, layer: int, k_pool_BGSD: Tensor, v_pool_BGSD: Tensor, *, read: bool = True
    ) -> None:
        """Copy the pages that the last lookup missed; no page that it hit leaves.

        ``read``: attention has read them from the pool by itself, so the copy moves them again.
        """

    @abstractmethod
    def prefetch(
        self, layer: int, page_BGN: Tensor, k_pool_BGSD: Tensor, v_pool_BGSD: Tensor
    ) -> None:
        """Treat distinct pages (int32, -1 padded) as used next: copy what is absent.

        Neither hits nor misses; copies and evictions count like those of ``admit``.
        """

    @abstractmethod
    def _drain(self) -> np.ndarray:
        """``(layers, 5)`` hits, misses, evictions, prefetched pages, moved tokens; then zero."""

    def traffic(self) -> list[Traffic]:
        """Counters of every layer since the last call (waits for the device)."""
        counts = self._drain()
        self.total += counts[:, :4].sum(0)
        unit = vector_bytes(self.shape)
        return [
            Traffic(layer=layer, hits=hits, misses=misses, evictions=out, h2d_bytes=tokens * unit)
            for layer, (hits, misses, out, _, tokens) in zip(
                self.shape.layers, counts.tolist(), strict=True
            )
        ]

    def stats(self) -> dict[str, float | int]:
        """Slots and hit ratio so far; with a recorded trace also the best possible ratio."""
        hits, misses, evictions, prefetched = self.total.tolist()
        asked = max(1, hits + misses)
        found: dict[str, float | int] = {
            "cache_slots": self.size.slots,
            "hit_ratio": hits / asked,
            "evictions": evictions,
            "prefetched_pages": prefetched,
        }
        if self.trace is not None:
            best = sum(
                optimal_hits([row[row >= 0].tolist() for row in steps], self.size.slots)
                for layer in self.trace
                for steps in zip(*layer, strict=True)
            )
            found["best_hit_ratio"] = best / asked
        return found

    def footprint(self) -> Footprint:
        """Bytes held."""
        return Footprint(device=self.k_LBGQD.nbytes + self.v_LBGQD.nbytes)

    def close(self) -> None:
        """Free the slots."""
        empty = torch.empty(0)
        self.k_LBGQD, self.v_LBGQD = empty, empty


class HostCache(PageCache):
    """Page tables in host memory; on a GPU every lookup waits for the page list."""

    def __init__(
        self, shape: KVShape, size: CacheSize, policy: str = "lru", record: bool = False
    ) -> None:
        super().__init__(shape, size, record)
        heads = shape.batch * shape.num_kv_heads
        self.tables = [PageTable(heads, size.pages, size.slots, policy) for _ in shape.layers]
        self.counts = np.zeros((len(shape.layers), 5), np.int64)
        by_layer = [
            torch.from_numpy(table.slot_NP).unflatten(0, (shape.batch, -1)) for table in self.tables
        ]
        self.on_gpu = torch.device(shape.device).type == "cuda"
        self.slot_LBGP = [slot.to(shape.device) for slot in by_layer]  # the table itself on a CPU

    @staticmethod
    def plan_table(shape: KVShape, size: CacheSize) -> Footprint:
        """Slot of every page; page, rank and mark of every slot; a copy of the former on a GPU."""
        heads = len(shape.layers) * shape.batch * shape.num_kv_heads
        mirror = 4 * size.pages * (torch.device(shape.device).type == "cuda")
        return Footprint(host=heads * (4 * size.pages + 13 * size.slots), device=heads * mirror)

    def _lookup(self, i: int, page_BGN: Tensor, tokens_BGN: Tensor) -> None:
        page = page_BGN.flatten(0, 1).cpu().numpy()
        hit = self.tables[i].lookup(page) >= 0
        tokens = tokens_BGN.flatten(0, 1).cpu().numpy()
        missed = (page >= 0) & ~hit
        self.counts[i] += (hit.sum(), missed.sum(), 0, 0, tokens[missed].sum())

    def view(self, layer: int) -> CacheView:
        """Page table and copies."""
        i = self.index[layer]
        return CacheView(self.slot_LBGP[i], self.k_LBGQD[i], self.v_LBGQD[i], self.size.page_tokens)

    def admit(
        self, layer: int, k_pool_BGSD: Tensor, v_pool_BGSD: Tensor, *, read: bool = True
    ) -> None:
        """Choose victims on the host, then copy."""
        i = self.index[layer]
        num_copied = self._copy(i, k_pool_BGSD, v_pool_BGSD)
        if read and k_pool_BGSD.device != self.k_LBGQD.device:
            self.counts[i, 4] += num_copied * self.size.page_tokens

    def prefetch(
        self, layer: int, page_BGN: Tensor, k_pool_BGSD: Tensor, v_pool_BGSD: Tensor
    ) -> None:
        """As another step, which nobody attends."""
        i = self.index[layer]
        self.tables[i].lookup(page_BGN.flatten(0, 1).cpu().numpy())
        num_copied = self._copy(i, k_pool_BGSD, v_pool_BGSD)
        self.counts[i, 3:] += (num_copied, num_copied * self.size.page_tokens)

    def _copy(self, i: int, k_pool_BGSD: Tensor, v_pool_BGSD: Tensor) -> int:
        """Let in the pages that the table misses; how many."""
        groups, moved = self.shape.num_kv_heads, self.tables[i].admit()
        self.counts[i, 2] += moved.num_evicted
        row, head = np.divmod(moved.head_M, groups)
        for pool, slots in ((k_pool_BGSD, self.k_LBGQD[i]), (v_pool_BGSD, self.v_LBGQD[i])):
            source = pool.unflatten(2, (-1, self.size.page_tokens))
            target = slots.unflatten(2, (-1, self.size.page_tokens))
            pages = source[_at(pool, row, head, moved.page_M)]
            target[_at(slots, row, head, moved.slot_M)] = pages.to(slots.device)
        if self.on_gpu:
            out = moved.evicted_M >= 0
            slot_BGP = self.slot_LBGP[i]
            slot_BGP[_at(slot_BGP, row[out], head[out], moved.evicted_M[out])] = -1
            slot = torch.from_numpy(moved.slot_M.astype(np.int32)).to(slot_BGP.device)
            slot_BGP[_at(slot_BGP, row, head, moved.page_M)] = slot
        return len(moved.page_M)

    def _drain(self) -> np.ndarray:
        counts = self.counts.copy()
        self.counts[:] = 0
        return counts

    def footprint(self) -> Footprint:
        """Slots and tables."""
        host = sum(
            t.slot_NP.nbytes + t.page_NQ.nbytes + t.rank_NQ.nbytes + t.touched_NQ.nbytes
            for t in self.tables
        )
        mirror = sum(slot.nbytes for slot in self.slot_LBGP) if self.on_gpu else 0
        return super().footprint() + Footprint(host=host, device=mirror)

    def close(self) -> None:
        """Free slots and tables."""
        super().close()
        self.tables, self.slot_LBGP = [], []


def make_cache(tiers: Tiers, shape: KVShape, size: CacheSize) -> PageCache:
    """The manager that the options ask for (``tiers.cached`` only)."""
    from retrobench.memory.device_cache import DeviceCache

    if tiers.manager == "device":
        return DeviceCache(shape, size, tiers.record)
    return HostCache(shape, size, tiers.eviction, tiers.record)


def distinct(page_BGN: Tensor) -> Tensor:
    """Each page once per row and head, ascending; duplicates become -1."""
    page = page_BGN.sort(-1).values
    twice = torch.zeros_like(page, dtype=torch.bool)
    twice[..., 1:] = page[..., 1:] == page[..., :-1]
    return page.masked_fill(twice, -1).int()


def _at(like: Tensor, row: np.ndarray, head: np.ndarray, where: np.ndarray) -> tuple[Tensor, ...]:
    return tuple(torch.from_numpy(x.astype(np.int64)).to(like.device) for x in (row, head, where))
