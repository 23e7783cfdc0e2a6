"""The block cache with its page table in host memory; see ``page_cache``."""

import numpy as np
import torch
from retrobench_kernels.page_lru import page_windows
from retrobench_kernels.wave_attention import Pages
from torch import Tensor

from retrobench.core.shapes import Footprint, KVShape
from retrobench.memory.page_cache import EVICTIONS, CacheSize, PageCache
from retrobench.memory.page_table import PageTable
from retrobench.memory.placement import kv_bytes


class HostCache(PageCache):
    """Page tables in host memory; on a GPU every lookup waits for the page list."""

    def __init__(
        self, shape: KVShape, size: CacheSize, policy: str = "lru", record: bool = False
    ) -> None:
        super().__init__(shape, size, record)
        heads = shape.batch * shape.num_kv_heads
        self.tables = [PageTable(heads, size.pages, size.slots, policy) for _ in shape.layers]
        self.counts = np.zeros((len(shape.layers), 5), np.int64)
        self.pages_3NR: dict[int, np.ndarray] = {}  # of the last lookup: number, tokens, start
        by_layer = [
            torch.from_numpy(table.slot_NP).unflatten(0, (shape.batch, -1)) for table in self.tables
        ]
        self.on_gpu = torch.device(shape.device).type == "cuda"
        self.slot_LBGP = [slot.to(shape.device) for slot in by_layer]  # the table itself on a CPU

    @staticmethod
    def plan(shape: KVShape, size: CacheSize) -> Footprint:
        """Slot of every page; page, rank and mark of every slot; a copy of the former on a GPU."""
        heads = len(shape.layers) * shape.batch * shape.num_kv_heads
        mirror = 4 * size.pages * (torch.device(shape.device).type == "cuda")
        tables = Footprint(host=heads * (4 * size.pages + 13 * size.slots), device=heads * mirror)
        return tables + Footprint(device=kv_bytes(shape, size.slots * size.page_tokens))

    def _lookup(self, i: int, pages: Pages) -> None:
        hit = self._find(i, pages) >= 0
        page, tokens, _ = self.pages_3NR[i]
        missed = (page >= 0) & ~hit
        self.counts[i] += (hit.sum(), missed.sum(), 0, 0, tokens[missed].sum())

    def _find(self, i: int, pages: Pages) -> np.ndarray:
        # in one copy: each would wait for the GPU
        parts = torch.stack((pages.page_BGN, pages.tokens_BGN, pages.start_BGN))
        self.pages_3NR[i] = parts.flatten(1, 2).cpu().numpy()
        return self.tables[i].lookup(self.pages_3NR[i][0])

    def _copy(self, i: int, k_pool_BGSD: Tensor, v_pool_BGSD: Tensor) -> int:
        groups, moved = self.shape.num_kv_heads, self.tables[i].admit()
        self.counts[i, EVICTIONS] += moved.num_evicted
        row, head = np.divmod(moved.head_M, groups)
        start_M = self.pages_3NR[i][2][moved.head_M, moved.column_M]
        for pool, slots in ((k_pool_BGSD, self.k_LBGQD[i]), (v_pool_BGSD, self.v_LBGQD[i])):
            source = page_windows(pool, self.size.page_tokens)
            target = slots.unflatten(2, (-1, self.size.page_tokens))
            pages = source[_at(pool, row, head, start_M)]
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
        host = sum(
            t.slot_NP.nbytes + t.page_NQ.nbytes + t.rank_NQ.nbytes + t.touched_NQ.nbytes
            for t in self.tables
        )
        mirror = sum(slot.nbytes for slot in self.slot_LBGP) if self.on_gpu else 0
        return super().footprint() + Footprint(host=host, device=mirror)

    def close(self) -> None:
        super().close()
        self.tables, self.slot_LBGP = [], []


def _at(like: Tensor, row: np.ndarray, head: np.ndarray, where: np.ndarray) -> tuple[Tensor, ...]:
    return tuple(torch.from_numpy(x.astype(np.int64)).to(like.device) for x in (row, head, where))
