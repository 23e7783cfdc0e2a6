"""Decode steps of a sealed ``RetroInfer`` that a CUDA graph can hold.

``attend`` is the whole attention of one layer and step: static shapes, lengths and counts in device
memory, no host round trip. What the host must do, counting tokens and forming segments, happens in
``begin_step`` between replays and writes into preallocated capacity, so that a captured graph stays
valid. The host knows when without asking the device: every row grows by one token per step.
"""

from __future__ import annotations

import torch
from retrobench_kernels.wave_step import CacheTable
from torch import Tensor

from retrobench.core.method import AttentionArgs
from retrobench.memory.device_cache import DeviceCache
from retrobench_methods.retroinfer import RetroInfer


class GraphDecode:
    """Attention owner (as ``engine.step_graph`` wants it) over a method after ``seal``."""

    def __init__(self, method: RetroInfer) -> None:
        index, cache = method.index, method.buffer.cache
        if not all(min(rows) for rows in index.clusters):
            raise ValueError(
                "a decode graph needs an index in every row; this batch has prompts too short for "
                "one (sink + local + update tokens), decode it without a graph"
            )
        if cache is not None and not isinstance(cache, DeviceCache):
            raise ValueError(
                "method.cache=host asks the host in every layer, which a graph cannot; use "
                "method.cache=device or none"
            )
        if method.worker is not None:
            raise ValueError(
                "a decode graph admits pages inside its attention kernel; use method.overlap=false "
                "and method.prefetch_frac=0"
            )
        self.method = method
        self.widths = self._widest("retrieved"), self._widest("estimated")
        self.tables: list[CacheTable | None] = [None] * len(method.shape.layers)
        if cache is not None:
            self.tables = [self._table(cache, i) for i in range(len(self.tables))]

    def begin_step(self) -> bool:
        """Host side of the coming step: form the segments that are due; whether any was."""
        method = self.method
        grown = [method.update(i, coming=1) for i in range(len(method.shape.layers))]
        for i in range(len(grown)):
            method.buffer.count_token(i)
        return any(grown)

    def attend(
        self, layer: int, q_BHTD: Tensor, k_BGTD: Tensor, v_BGTD: Tensor, args: AttentionArgs
    ) -> Tensor:
        """One token: append, select, attend, admit; all that varies is in device memory."""
        method, i = self.method, self.method.number[layer]
        index = method.index
        method.buffer.write_token(i, k_BGTD, v_BGTD)
        q_BHD = q_BHTD[:, :, 0].contiguous()
        pool = method.buffer.pool(i, index.first_LBGC[i], index.size_LBGC[i])
        zones = method.select(i, q_BHD, pool, args, self.widths)
        table = self.tables[i]
        if table is not None:
            table.step_1.add_(1)
        return method.attend(i, q_BHD, pool, zones, args, table=table)[:, :, None]

    def hit_ratio(self) -> float | None:
        """Page hits over page accesses so far (waits for the device); None without a cache."""
        tallies = [table.tally_BG2.sum((0, 1)) for table in self.tables if table is not None]
        if not tallies:
            return None
        hits, misses = torch.stack(tallies).sum(0).tolist()
        return hits / max(1, hits + misses)

    def _widest(self, kind: str) -> int:
        """Static width of a list: the widest row's after every update that may still come."""
        index, most = self.method.index, 0
        for used, counts in zip(index.clusters, getattr(index, kind), strict=True):
            for clusters, count, want in zip(used, counts, index.sizes, strict=True):
                updates = (index.capacity - clusters) // want.update_clusters
                most = max(most, count + updates * getattr(want, f"{kind}_per_update"))
        return min(most, index.capacity)

    def _table(self, cache: DeviceCache, i: int) -> CacheTable:
        shape = self.method.shape
        heads = (shape.batch, shape.num_kv_heads)
        return CacheTable(
            cache.slot_LBGP[i],
            cache.page_LBGQ[i],
            cache.stamp_LBGQ[i],
            cache.step_L1[i],
            torch.zeros(*heads, 2, dtype=torch.int64, device=shape.device),
            cache.k_LBGQD[i],
            cache.v_LBGQD[i],
            cache.size.page_tokens,
        )
