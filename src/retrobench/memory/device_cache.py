"""The block cache with its bookkeeping on the model's device; see ``page_cache``."""

from dataclasses import replace

import numpy as np
import torch
from retrobench_kernels.page_lru import copy_pages, page_admit, page_lru
from retrobench_kernels.wave_attention import CacheTable, Pages
from torch import Tensor

from retrobench.core.shapes import Footprint, KVShape
from retrobench.memory.page_cache import (
    EVICTIONS,
    HITS,
    MISSES,
    MOVED,
    CacheSize,
    PageCache,
)


class DeviceCache(PageCache):
    """Page tables and replacement on the model's device: no step waits for the host."""

    slot_LBGP: Tensor

    def __init__(self, shape: KVShape, size: CacheSize, record: bool = False) -> None:
        super().__init__(shape, size, record)
        heads = (len(shape.layers), shape.batch, shape.num_kv_heads)

        def fresh(width: int) -> Tensor:
            return torch.full((*heads, width), -1, dtype=torch.int32, device=shape.device)

        self.slot_LBGP, self.page_LBGQ = fresh(size.pages), fresh(size.slots)
        self.stamp_LBGQ = fresh(size.slots)
        layers = len(shape.layers)
        self.step_L1 = torch.zeros(layers, 1, dtype=torch.int32, device=shape.device)
        self.counts = torch.zeros(layers, 5, dtype=torch.int64, device=shape.device)
        # pages, their victims and the table, of each layer: a thread may fill another layer's cache
        self.found: dict[int, tuple[Pages, Tensor, CacheTable]] = {}
        # of fused steps: hits, misses and evictions, in pages; tokens of missed pages
        self.tally_LBG4 = torch.zeros(*heads, 4, dtype=torch.int64, device=shape.device)

    @classmethod
    def plan(cls, shape: KVShape, size: CacheSize) -> Footprint:
        """Bytes before allocation: those of a cache on torch's meta device."""
        return cls(replace(shape, device="meta"), size).footprint()

    def _lookup(self, i: int, pages: Pages) -> None:
        slot = self._find(i, pages)
        missed = (pages.page_BGN >= 0) & (slot < 0)
        self.counts[i, HITS] += (slot >= 0).sum()
        self.counts[i, MISSES] += missed.sum()
        self.counts[i, MOVED] += (pages.tokens_BGN * missed).sum()

    def _find(self, i: int, pages: Pages) -> Tensor:
        table = self.table(self.shape.layers[i])
        slot, victim = page_lru(pages.page_BGN, table)
        self.found[i] = pages, victim, table
        return slot

    def _copy(self, i: int, k_pool_BGSD: Tensor, v_pool_BGSD: Tensor) -> Tensor:
        pages, victim, table = self.found.pop(i)
        held = table.page_BGQ.gather(-1, victim.clamp_min(0).long())
        self.counts[i, EVICTIONS] += ((victim >= 0) & (held >= 0)).sum()
        for pool, slots in ((k_pool_BGSD, table.k_BGQD), (v_pool_BGSD, table.v_BGQD)):
            copy_pages(pool, slots, pages.start_BGN, victim, self.size.page_tokens)
        page_admit(pages.page_BGN, victim, table)
        return (victim >= 0).sum()

    def table(self, layer: int) -> CacheTable:
        """Everything that a step reads and changes; its clock is one step further."""
        i = self.index[layer]
        step_1 = self.step_L1[i]
        step_1 += 1
        return CacheTable(
            self.slot_LBGP[i], self.page_LBGQ[i], self.stamp_LBGQ[i], step_1, self.tally_LBG4[i],
            self.k_LBGQD[i], self.v_LBGQD[i], self.size.page_tokens,
        )  # fmt: skip

    def _drain(self) -> np.ndarray:
        counts = self.counts.cpu().numpy().copy()
        counts[:, [HITS, MISSES, EVICTIONS, MOVED]] += self.tally_LBG4.sum((1, 2)).cpu().numpy()
        self.counts.zero_()
        self.tally_LBG4.zero_()
        return counts
