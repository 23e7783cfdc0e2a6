"""Page table and replacement of a block cache, for many heads at once, without torch.

All pages that a head touches in one step are one batch: they are equally recent, and none of them
is evicted for another one of the same step. So least-recently-used is exact over steps, and ties
go to the lower slot.
"""

import heapq
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

POLICIES = ("lru", "fifo", "lfu")
_AGE_BITS = 40  # steps; the uses of lfu are counted above them


@dataclass(frozen=True, slots=True)
class Admission:
    """Pages that enter the cache, and the pages whose slots they take (-1: a free slot).

    ``column_M`` is where each page was in the list of the lookup.
    """

    head_M: np.ndarray
    page_M: np.ndarray
    slot_M: np.ndarray
    evicted_M: np.ndarray
    column_M: np.ndarray

    @property
    def num_evicted(self) -> int:
        """Pages that left the cache."""
        return int((self.evicted_M >= 0).sum())


class PageTable:
    """Where ``pages`` pages of each of ``heads`` heads are in a cache of ``slots`` slots per head.

    A step is ``lookup`` (what is there) and then ``admit`` (make room for what was not). Pages
    beyond the capacity of a step are left out, last asked first.
    """

    def __init__(self, heads: int, pages: int, slots: int, policy: str = "lru") -> None:
        assert policy in POLICIES, policy
        self.policy = policy
        self.slot_NP = np.full((heads, pages), -1, np.int32)
        self.page_NQ = np.full((heads, slots), -1, np.int32)
        self.rank_NQ = np.full((heads, slots), -1, np.int64)  # the smallest leaves first; -1: free
        self.step = 0
        self._head_N1 = np.arange(heads)[:, None]
        self._missing_NR = np.full((heads, 0), -1, np.int32)
        self.touched_NQ = np.zeros((heads, slots), bool)

    def lookup(self, page_NR: np.ndarray) -> np.ndarray:
        """Slots of the distinct pages asked for in a step, -1 where absent (or page -1)."""
        self.step += 1
        slot_NR = self.slot_NP[self._head_N1, page_NR]
        slot_NR = np.where(page_NR >= 0, slot_NR, -1)
        hit_NR = slot_NR >= 0
        self._missing_NR = np.where(hit_NR, -1, page_NR)
        head, column = np.nonzero(hit_NR)
        slot = slot_NR[head, column]
        self.touched_NQ[:] = False
        self.touched_NQ[head, slot] = True
        if self.policy == "lru":
            self.rank_NQ[head, slot] = self.step
        elif self.policy == "lfu":
            uses = (self.rank_NQ[head, slot] >> _AGE_BITS) + 1
            self.rank_NQ[head, slot] = (uses << _AGE_BITS) + self.step
        return slot_NR

    def admit(self) -> Admission:
        """Give every page that the last lookup missed a slot, while there are victims."""
        slots = self.page_NQ.shape[1]
        missing_NR = self._missing_NR >= 0
        room_N = slots - self.touched_NQ.sum(1)
        order_NR = missing_NR.cumsum(1) - 1
        head, column = np.nonzero(missing_NR & (order_NR < room_N[:, None]))
        page = self._missing_NR[head, column]
        most = int(order_NR.max(initial=-1)) + 1
        victim_NK = self._victims(min(most, slots))
        slot = victim_NK[head, order_NR[head, column]]
        evicted = self.page_NQ[head, slot]
        self.slot_NP[head[evicted >= 0], evicted[evicted >= 0]] = -1
        self.slot_NP[head, page] = slot
        self.page_NQ[head, slot] = page
        uses = 1 << _AGE_BITS if self.policy == "lfu" else 0
        self.rank_NQ[head, slot] = self.step + uses
        self._missing_NR = self._missing_NR[:, :0]
        return Admission(head, page, slot, evicted, column)

    def _victims(self, count: int) -> np.ndarray:
        """The ``count`` slots of each head that leave first; touched ones come last."""
        slots = self.page_NQ.shape[1]
        last = np.iinfo(np.int64).max
        if self.policy == "lfu":  # the slot index must not overflow the counter
            rank_NQ = np.where(self.touched_NQ, last, self.rank_NQ)
            return np.argsort(rank_NQ, axis=1, kind="stable")[:, :count]
        rank_NQ = np.where(self.touched_NQ, last // (slots + 1), self.rank_NQ)
        key_NQ = rank_NQ * slots + np.arange(slots)
        if count < slots:
            chosen = np.argpartition(key_NQ, count, axis=1)[:, :count]
            key_NQ = np.take_along_axis(key_NQ, chosen, 1)
            return np.take_along_axis(chosen, key_NQ.argsort(1), 1)
        return key_NQ.argsort(1)


def optimal_hits(steps: Sequence[Sequence[int]], slots: int) -> int:
    """Hits of the best possible policy on one head's accesses (Belady's bound, bypass allowed).

    After every step the ``slots`` pages with the nearest next use stay, whether they were in the
    tier or just came by.
    """
    uses: dict[int, list[int]] = defaultdict(list)
    for i in range(len(steps) - 1, -1, -1):
        for page in steps[i]:
            uses[page].append(i)
    never, hits = len(steps), 0
    tier: set[int] = set()
    for pages in steps:
        hits += len(tier.intersection(pages))
        for page in pages:
            uses[page].pop()
        candidates = tier.union(pages)
        following = {page: uses[page][-1] if uses[page] else never for page in candidates}
        tier = set(heapq.nsmallest(slots, candidates, key=lambda page: (following[page], page)))
    return hits
