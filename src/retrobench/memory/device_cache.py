"""The block cache with its bookkeeping on the model's device; see ``page_cache``."""

from __future__ import annotations

import numpy as np
import torch
from retrobench_kernels.page_lru import copy_pages, page_admit, page_lru
from retrobench_kernels.wave_step import CacheTable
from torch import Tensor

from retrobench.core.shapes import Footprint, KVShape
from retrobench.memory.page_cache import CacheSize, PageCache


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
        self.counts_L5 = torch.zeros(layers, 5, dtype=torch.int64, device=shape.device)
        self.found: tuple[Tensor, Tensor] | None = None  # pages and victims of the last lookup
        # page hits and misses of fused steps
        self.tally_LBG2 = torch.zeros(*heads, 2, dtype=torch.int64, device=shape.device)

    @staticmethod
    def plan_table(shape: KVShape, size: CacheSize) -> Footprint:
        """Slot of every page, page and stamp of every slot, steps and counters."""
        layers = len(shape.layers)
        heads = layers * shape.batch * shape.num_kv_heads
        per_head = 4 * (size.pages + 2 * size.slots) + 16
        return Footprint(device=heads * per_head + layers * (4 + 40))

    def _lookup(self, i: int, page_BGN: Tensor, tokens_BGN: Tensor) -> None:
        slot, victim = self._find(i, page_BGN)
        missed = (page_BGN >= 0) & (slot < 0)
        self.counts_L5[i, 0] += (slot >= 0).sum()
        self.counts_L5[i, 1] += missed.sum()
        self.counts_L5[i, 4] += (tokens_BGN * missed).sum()
        self.found = page_BGN, victim

    def _find(self, i: int, page_BGN: Tensor) -> tuple[Tensor, Tensor]:
        """Slots of a new step's pages, and the victims of those that are absent."""
        self.step_L1[i] += 1
        return page_lru(page_BGN, self.slot_LBGP[i], self.stamp_LBGQ[i], self.step_L1[i])

    def admit(
        self, layer: int, k_pool_BGSD: Tensor, v_pool_BGSD: Tensor, *, read: bool = True
    ) -> None:
        """Copy, then enter the pages into the table."""
        assert self.found is not None, "admit without lookup"
        i = self.index[layer]
        num_copied = self._copy(i, *self.found, k_pool_BGSD, v_pool_BGSD)
        if read and k_pool_BGSD.device != self.k_LBGQD.device:
            self.counts_L5[i, 4] += num_copied * self.size.page_tokens

    def prefetch(
        self, layer: int, page_BGN: Tensor, k_pool_BGSD: Tensor, v_pool_BGSD: Tensor
    ) -> None:
        """As another step, which nobody attends."""
        i = self.index[layer]
        _, victim = self._find(i, page_BGN)
        num_copied = self._copy(i, page_BGN, victim, k_pool_BGSD, v_pool_BGSD)
        self.counts_L5[i, 3] += num_copied
        self.counts_L5[i, 4] += num_copied * self.size.page_tokens

    def _copy(
        self, i: int, page: Tensor, victim: Tensor, k_pool_BGSD: Tensor, v_pool_BGSD: Tensor
    ) -> Tensor:
        """Let pages into the slots of their victims (-1: not); how many."""
        held = self.page_LBGQ[i].gather(-1, victim.clamp_min(0).long())
        self.counts_L5[i, 2] += ((victim >= 0) & (held >= 0)).sum()
        for pool, slots in ((k_pool_BGSD, self.k_LBGQD[i]), (v_pool_BGSD, self.v_LBGQD[i])):
            copy_pages(pool, slots, page, victim, self.size.page_tokens)
        tables = self.slot_LBGP[i], self.page_LBGQ[i], self.stamp_LBGQ[i]
        page_admit(page, victim, *tables, self.step_L1[i])
        return (victim >= 0).sum()

    def table(self, layer: int) -> CacheTable:
        """Everything that a fused step reads and changes; its clock is one step further."""
        i = self.index[layer]
        step_1 = self.step_L1[i]
        step_1 += 1
        return CacheTable(
            self.slot_LBGP[i], self.page_LBGQ[i], self.stamp_LBGQ[i], step_1, self.tally_LBG2[i],
            self.k_LBGQD[i], self.v_LBGQD[i], self.size.page_tokens,
        )  # fmt: skip

    def _drain(self) -> np.ndarray:
        counts = self.counts_L5.cpu().numpy().copy()
        tally_L2 = self.tally_LBG2.sum((1, 2)).cpu().numpy()
        counts[:, :2] += tally_L2
        counts[:, 4] += tally_L2[:, 1] * self.size.page_tokens
        self.counts_L5.zero_()
        self.tally_LBG2.zero_()
        return counts

    def footprint(self) -> Footprint:
        """Slots and tables."""
        tables = (self.slot_LBGP, self.page_LBGQ, self.stamp_LBGQ, self.step_L1)
        held = (*tables, self.counts_L5, self.tally_LBG2)
        return super().footprint() + Footprint(device=sum(table.nbytes for table in held))

    def close(self) -> None:
        """Free slots and tables."""
        super().close()
        empty = torch.empty(0)
        self.slot_LBGP, self.page_LBGQ, self.stamp_LBGQ = empty, empty, empty
        self.step_L1, self.counts_L5, self.tally_LBG2 = empty, empty, empty
