"""The GPU block cache: copies of recently used pages, under one interface for every manager.

A step of a layer is ``lookup`` (which pages are here), attention over ``view`` and the slow pool,
``admit`` (write-through: what was missed is copied in, after the attention that needed it). Pages
are written once, so a copy never goes stale. ``host_cache`` keeps the page table on the host (like
the released RetroInfer code), ``device_cache`` on the model's device. ``prefetch`` copies pages in
that nobody attends yet.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from retrobench_kernels.wave_attention import CacheTable, Pages
from retrobench_kernels.wave_attention import PageCache as CacheView
from torch import Tensor

from retrobench.core.method import Probe
from retrobench.core.shapes import KVShape
from retrobench.memory.page_table import optimal_hits
from retrobench.memory.placement import Holder, allocate, vector_bytes

HITS, MISSES, EVICTIONS, PREFETCHED, MOVED = range(5)  # of ``counts``: pages; tokens that moved


@dataclass(frozen=True, slots=True, kw_only=True)
class CacheSize:
    """Pages of the pool and slots of the cache, per row, KV head and layer."""

    pages: int
    slots: int
    page_tokens: int


class PageCache(Holder, ABC):
    """Slots on the model's device, and counters; subclasses manage which page is where."""

    slot_LBGP: Sequence[Tensor] | Tensor  # page table of each layer
    counts: Any  # ``(layers, 5)`` since the last report: an array, or a tensor on the device

    def __init__(self, shape: KVShape, size: CacheSize, record: bool = False) -> None:
        self.shape, self.size = shape, size
        self.index = {layer: i for i, layer in enumerate(shape.layers)}
        heads = (len(shape.layers), shape.batch, shape.num_kv_heads)
        vectors = (*heads, size.slots * size.page_tokens, shape.head_dim)
        self.k_LBGQD = allocate(vectors, shape, "gpu")
        self.v_LBGQD = allocate(vectors, shape, "gpu")
        self.trace: list[list[np.ndarray]] | None = [[] for _ in shape.layers] if record else None
        self.total = np.zeros(4, np.int64)  # hits, misses, evictions, prefetched; in pages

    def lookup(self, layer: int, pages: Pages) -> None:
        """Note the pages that a step attends."""
        i = self.index[layer]
        if self.trace is not None:
            self.trace[i].append(pages.page_BGN.flatten(0, 1).cpu().numpy().copy())
        self._lookup(i, pages)

    @abstractmethod
    def _lookup(self, i: int, pages: Pages) -> None: ...

    def view(self, layer: int) -> CacheView:
        """Page table and copies as they are before ``admit``, for kernels."""
        i = self.index[layer]
        return CacheView(self.slot_LBGP[i], self.k_LBGQD[i], self.v_LBGQD[i], self.size.page_tokens)

    def admit(
        self, layer: int, k_pool_BGSD: Tensor, v_pool_BGSD: Tensor, *, read: bool = True
    ) -> None:
        """Copy the pages that the last lookup missed; no page that it hit leaves.

        ``read``: attention has read them from the pool by itself, so the copy moves them again.
        """
        num_copied = self._copy(self.index[layer], k_pool_BGSD, v_pool_BGSD)
        if read and k_pool_BGSD.device != self.k_LBGQD.device:
            self.counts[self.index[layer], MOVED] += num_copied * self.size.page_tokens

    def prefetch(self, layer: int, pages: Pages, k_pool_BGSD: Tensor, v_pool_BGSD: Tensor) -> None:
        """Treat pages as used next: copy what is absent.

        Neither hits nor misses; copies and evictions count like those of ``admit``.
        """
        i = self.index[layer]
        self._find(i, pages)
        num_copied = self._copy(i, k_pool_BGSD, v_pool_BGSD)
        self.counts[i, PREFETCHED] += num_copied
        self.counts[i, MOVED] += num_copied * self.size.page_tokens

    @abstractmethod
    def _find(self, i: int, pages: Pages) -> Any:
        """Begin a step: the slots of these pages, -1 where absent."""

    @abstractmethod
    def _copy(self, i: int, k_pool_BGSD: Tensor, v_pool_BGSD: Tensor) -> Any:
        """Let in the pages that the last ``_find`` missed; how many."""

    def table(self, layer: int) -> CacheTable | None:
        """What a fused step reads and changes; None where the host manages the pages."""
        return None

    @abstractmethod
    def _drain(self) -> np.ndarray:
        """The counts of every layer since the last call."""

    def report_counts(self, probe: Probe) -> None:
        """Tell the probe what every layer did since the last call (waits for the device)."""
        counts = self._drain()
        self.total += counts[:, :4].sum(0)
        unit = vector_bytes(self.shape)
        for layer, (hits, misses, out, _, tokens) in zip(
            self.shape.layers, counts.tolist(), strict=True
        ):
            probe.count(layer, hits=hits, misses=misses, evictions=out, h2d=tokens * unit)

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


def distinct(page_BGN: Tensor) -> Tensor:
    """Each page once per row and head, ascending; duplicates become -1."""
    page = page_BGN.sort(-1).values
    twice = torch.zeros_like(page, dtype=torch.bool)
    twice[..., 1:] = page[..., 1:] == page[..., :-1]
    return page.masked_fill(twice, -1).int()


def most_asked(page_BGN: Tensor) -> tuple[Tensor, Tensor]:
    """Each page once per row and head, and how often it was there; most often first, -1 padded."""
    page = page_BGN.sort(-1).values
    new = torch.ones_like(page, dtype=torch.bool)
    new[..., 1:] = page[..., 1:] != page[..., :-1]
    run, real = new.cumsum(-1) - 1, page >= 0
    times = torch.zeros_like(page).scatter_add_(-1, run, real.to(page.dtype))
    single = torch.full_like(page, -1).scatter_(-1, run, page)
    times, order = times.sort(dim=-1, descending=True, stable=True)
    return single.gather(-1, order).int(), times.int()
