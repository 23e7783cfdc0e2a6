"""The block cache with its page table in host memory; see ``page_cache``."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from retrobench.core.shapes import Footprint, KVShape
from retrobench.memory.page_cache import CacheSize, PageCache
from retrobench.memory.page_table import PageTable


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


def _at(like: Tensor, row: np.ndarray, head: np.ndarray, where: np.ndarray) -> tuple[Tensor, ...]:
    return tuple(torch.from_numpy(x.astype(np.int64)).to(like.device) for x in (row, head, where))
