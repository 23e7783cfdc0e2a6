"""Triton page table and LRU equal the naive form over many steps."""

from __future__ import annotations

import pytest
import torch
from kernel_parity import DEVICE, TOLERANCE, needs_triton, poisoned, random_index, random_tensor
from retrobench_kernels.page_lru import copy_pages, page_admit, page_lru
from retrobench_kernels.wave_attention import CacheTable, Steady
from retrobench_kernels.wave_step import wave_step

pytestmark = needs_triton
BATCH, GROUPS, PAGES = 2, 2, 120


class Table:
    """Page table, owners and stamps of an empty cache."""

    def __init__(self, slots):
        shape = {"dtype": torch.int32, "device": DEVICE}
        self.slot = torch.full((BATCH, GROUPS, PAGES), -1, **shape)
        self.page = torch.full((BATCH, GROUPS, slots), -1, **shape)
        self.stamp = torch.full((BATCH, GROUPS, slots), -1, **shape)

    def at(self, now, tally=None):
        """The tables of a cache without vectors."""
        nothing = torch.empty(0, device=DEVICE)
        tally = nothing if tally is None else tally
        return CacheTable(self.slot, self.page, self.stamp, now, tally, nothing, nothing, 4)

    def same(self, other):
        return all(torch.equal(getattr(self, n), getattr(other, n)) for n in vars(self))


def wanted(step, width):
    """A drifting working set, -1 padded at random places."""
    generator = torch.Generator().manual_seed(step)
    pages = torch.stack(
        [torch.randperm(60, generator=generator)[:width] for _ in range(BATCH * GROUPS)]
    )
    pages = (pages + 9 * step) % PAGES
    pages[torch.rand(pages.shape, generator=generator) < 0.2] = -1
    return pages.int().reshape(BATCH, GROUPS, width).to(DEVICE)


@pytest.mark.parametrize(("slots", "width"), [(23, 17), (7, 19)])
def test_lookup_admit_equal_naive(slots, width):
    ours, theirs = Table(slots), Table(slots)
    for step in range(6):
        now = torch.tensor([step], dtype=torch.int32, device=DEVICE)
        page = wanted(step, width)
        with poisoned():
            got = page_lru.form("triton")(page, ours.at(now))
        expected = page_lru.reference(page, theirs.at(now))
        assert torch.equal(got[0], expected[0]) and torch.equal(got[1], expected[1])
        page_admit.form("triton")(page, got[1], ours.at(now))
        page_admit.reference(page, expected[1], theirs.at(now))
        assert ours.same(theirs), step


def test_one_launch_equals_lookup_and_admit():
    from retrobench_kernels.page_lru.triton import page_step

    ours, theirs = Table(11), Table(11)
    tally = torch.zeros(BATCH, GROUPS, 4, dtype=torch.int64, device=DEVICE)
    expected_tally = torch.zeros(4, dtype=torch.int64)
    for step in range(5):
        now = torch.tensor([step], dtype=torch.int32, device=DEVICE)
        page = torch.stack([torch.arange(13) * (step + 2) % PAGES for _ in range(4)])
        page = page.int().reshape(BATCH, GROUPS, 13).to(DEVICE)
        count = torch.tensor([[13, 4], [0, 9]], dtype=torch.int32, device=DEVICE)
        listed = torch.arange(13, device=DEVICE) < count[..., None]
        tokens = (page % 4 + 1).contiguous()
        with poisoned():
            source = page_step(page, tokens, count, ours.at(now, tally))
        masked = page.masked_fill(~listed, -1)
        slot, victim = page_lru.reference(masked, theirs.at(now))
        held = theirs.page.gather(-1, victim.clamp_min(0).long())
        missed = (masked >= 0) & (slot < 0)
        found = slot >= 0, missed, (victim >= 0) & (held >= 0), tokens * missed
        expected_tally += torch.tensor([int(x.sum()) for x in found])
        page_admit.reference(masked, victim, theirs.at(now))
        expected = torch.where(victim >= 0, -2 - victim, slot)
        assert torch.equal(source[listed], expected[listed]) and ours.same(theirs)
    assert tally.sum((0, 1)).tolist() == expected_tally.tolist() and expected_tally.all()


def test_copy_pages():
    pool = random_tensor(BATCH, GROUPS, PAGES * 4, 24, dtype=torch.bfloat16)
    page = wanted(1, 6)
    victim = torch.stack([torch.randperm(9)[:6] for _ in range(4)]).int()
    victim = victim.reshape(BATCH, GROUPS, 6).to(DEVICE).masked_fill(page < 0, -1)
    caches = [torch.full((BATCH, GROUPS, 36, 24), 7.0, device=DEVICE).bfloat16() for _ in "ab"]
    start = page.clamp_min(0) * 3 + 1  # pages begin anywhere
    copy_pages.form("triton")(pool, caches[0], start, victim, 4)
    copy_pages.reference(pool, caches[1], start, victim, 4)
    assert torch.equal(*caches)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_cached_step_equals_naive(dtype):
    index = random_index(2, 2, 64, dtype, page_tokens=4, most=9)
    slots, shape = 12, {"dtype": torch.int32, "device": DEVICE}

    def fresh():
        vectors = torch.zeros(2, 2, slots * 4, 64, dtype=dtype, device=DEVICE)
        return CacheTable(
            torch.full((2, 2, index.pages), -1, **shape),
            torch.full((2, 2, slots), -1, **shape),
            torch.full((2, 2, slots), -1, **shape),
            torch.zeros(1, **shape),
            torch.zeros(2, 2, 4, dtype=torch.int64, device=DEVICE),
            vectors,
            vectors.clone(),
            4,
        )

    ours, theirs = fresh(), fresh()
    zeros = torch.zeros(2, 2, 16, 64, dtype=dtype, device=DEVICE)
    steady = Steady(zeros, zeros, torch.tensor([16, 3], **shape))
    for _ in range(4):
        q = random_tensor(2, 4, 64, dtype=dtype)
        retrieved = torch.rand(2, 2, 12, device=DEVICE).argsort(-1)[..., :4].int().contiguous()
        for table in (ours, theirs):
            table.step_1.add_(1)
        got = wave_step.form("triton")(q, steady, index.pool, retrieved, 0.1, cache=ours, splits=2)
        expected = wave_step.reference(q, steady, index.pool, retrieved, 0.1, cache=theirs)
        torch.testing.assert_close(got[0], expected[0], **TOLERANCE[dtype])
        for name in ("slot_BGP", "page_BGQ", "stamp_BGQ", "tally_BG4"):
            assert torch.equal(getattr(ours, name), getattr(theirs, name)), name
    assert ours.tally_BG4[..., 0].sum() > 0
