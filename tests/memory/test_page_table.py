"""Page table and replacement: the numpy and the torch form against a ten-line model."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from retrobench_kernels.page_lru import copy_pages, page_admit, page_lru
from retrobench_kernels.wave_attention import CacheTable

from retrobench.memory.page_table import PageTable, optimal_hits


class Model:
    """One head, one page at a time: ``slot[i]`` is None or ``[uses, step, page]``."""

    def __init__(self, slots, policy):
        self.slot, self.policy, self.step = [None] * slots, policy, 0

    def access(self, pages):
        self.step += 1
        hits = {entry[2] for entry in self.slot if entry} & set(pages)
        for entry in self.slot:
            if entry and entry[2] in hits and self.policy != "fifo":
                entry[:2] = entry[0] + (self.policy == "lfu"), self.step
        for page in [page for page in pages if page not in hits]:
            free = [
                i for i, entry in enumerate(self.slot) if entry is None or entry[2] not in pages
            ]
            if free:
                key = {i: self.slot[i][:2] if self.slot[i] else [-1, -1] for i in free}
                first = min(free, key=lambda i: (key[i], i))
                self.slot[first] = [int(self.policy == "lfu"), self.step, page]
        return hits


TRACE = st.integers(1, 4).flatmap(
    lambda heads: st.tuples(
        st.just(heads),
        st.integers(1, 12),
        st.lists(
            st.lists(
                st.lists(st.integers(0, 19), max_size=9, unique=True),
                min_size=heads,
                max_size=heads,
            ),
            min_size=1,
            max_size=25,
        ),
    )
)


def padded(step):
    longest = max(map(len, step))
    return np.array([row + [-1] * (longest - len(row)) for row in step], np.int32)


@settings(max_examples=150, deadline=None)
@given(trace=TRACE, policy=st.sampled_from(["lru", "fifo", "lfu"]))
def test_table_equals_the_model(trace, policy):
    heads, slots, steps = trace
    table = PageTable(heads, 20, slots, policy)
    models = [Model(slots, policy) for _ in range(heads)]
    for step in steps:
        before = [set(row[row >= 0].tolist()) for row in table.page_NQ]
        slot = table.lookup(padded(step))
        moved = table.admit()
        for head, (model, pages) in enumerate(zip(models, step, strict=True)):
            hits = {page for page, s in zip(pages, slot[head], strict=False) if s >= 0}
            assert hits == model.access(pages) == set(pages) & before[head]
            held = [-1 if entry is None else entry[2] for entry in model.slot]
            assert table.page_NQ[head].tolist() == held
            where = {page: slot for slot, page in enumerate(held) if page >= 0}
            assert table.slot_NP[head].tolist() == [where.get(page, -1) for page in range(20)]
            out = moved.evicted_M[(moved.head_M == head) & (moved.evicted_M >= 0)].tolist()
            into = moved.page_M[moved.head_M == head].tolist()
            assert set(where) == (before[head] - set(out)) | set(into)


@settings(max_examples=100, deadline=None)
@given(trace=TRACE)
def test_torch_form_equals_the_table(trace):
    heads, slots, steps = trace
    table = PageTable(heads, 20, slots)
    slot_BGP, page_BGQ, stamp_BGQ = (
        torch.full((1, heads, width), -1, dtype=torch.int32) for width in (20, slots, slots)
    )
    tables, nothing = (slot_BGP, page_BGQ, stamp_BGQ), torch.empty(0)
    pool = torch.arange(heads * 40.0).reshape(1, heads, 40, 1)
    cache = torch.full((1, heads, slots * 2, 1), torch.nan)
    for number, step in enumerate(steps, 1):
        page = padded(step)
        if page.size == 0:
            continue
        page_BGN, step_1 = torch.from_numpy(page)[None], torch.tensor([number], dtype=torch.int32)
        cached = CacheTable(*tables, step_1, nothing, nothing, nothing, 2)
        slot, victim = page_lru(page_BGN, cached)
        assert np.array_equal(slot[0].numpy(), table.lookup(page))
        copy_pages(pool, cache, page_BGN * 2, victim, 2)
        page_admit(page_BGN, victim, cached)
        table.admit()
        assert np.array_equal(slot_BGP[0].numpy(), table.slot_NP)
        assert np.array_equal(page_BGQ[0].numpy(), table.page_NQ)
        head, where = np.nonzero(table.page_NQ >= 0)
        held = cache.unflatten(2, (-1, 2))[0, head, where, :, 0]
        assert torch.equal(
            held, pool.unflatten(2, (-1, 2))[0, head, table.page_NQ[head, where], :, 0]
        )


@settings(max_examples=60, deadline=None)
@given(
    steps=st.lists(st.lists(st.integers(0, 8), max_size=5, unique=True), max_size=20),
    slots=st.integers(1, 6),
)
def test_no_policy_beats_the_bound(steps, slots):
    best = optimal_hits(steps, slots)
    for policy in ("lru", "fifo", "lfu"):
        table, hits = PageTable(1, 9, slots, policy), 0
        for pages in steps:
            hits += int((table.lookup(np.array([pages], np.int32).reshape(1, -1)) >= 0).sum())
            table.admit()
        assert hits <= best


def test_bound_of_a_loop_is_known():
    """Pages 0 1 2 in turn with two slots: LRU never hits, the best policy hits every other time."""
    steps = [[i % 3] for i in range(9)]
    assert optimal_hits(steps, 2) == 4
    table = PageTable(1, 3, 2)
    hits = 0
    for pages in steps:
        hits += int((table.lookup(np.array([pages])) >= 0).sum())
        table.admit()
    assert hits == 0


@pytest.mark.parametrize("policy", ["lru", "fifo", "lfu"])
def test_more_than_the_capacity_keeps_the_first(policy):
    table = PageTable(1, 10, 3, policy)
    table.lookup(np.array([[5, 6, 7, 8, 9]]))
    assert table.admit().page_M.tolist() == [5, 6, 7]
    assert (table.lookup(np.array([[9, 5]])) >= 0).tolist() == [[False, True]]


def test_a_page_in_use_stays_beside_one_that_was_used_very_often():
    """With 1000 slots, some thousand uses are more than a slot's share of 63 bits."""
    table = PageTable(1, 1001, 1000, "lfu")
    table.lookup(np.arange(1000)[None])
    table.admit()
    for _ in range(9000):
        table.lookup(np.arange(999)[None])
    assert (table.lookup(np.array([[999, 1000]])) >= 0).tolist() == [[True, False]]
    assert table.admit().evicted_M.tolist() == [0]
