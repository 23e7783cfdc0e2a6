"""Page-locked memory against a driver that only keeps books: what is registered is released."""

from __future__ import annotations

import gc
from pathlib import Path

import pytest
import torch

from retrobench.memory import placement
from retrobench.memory.placement import ResolvedPlacement, allocate
from retrobench.memory.pool import PooledStore
from tests.support import kv_shape

PAGE = 4096


class Driver:
    """``cudaHostRegister`` and its end; refuses from the ``refuse``-th call on."""

    def __init__(self, refuse=None):
        self.held, self.calls, self.refuse = {}, 0, refuse

    def cudaHostRegister(self, address, num_bytes, flags):
        self.calls += 1
        if self.refuse is not None and self.calls >= self.refuse:
            return 2
        pages = range(address // PAGE, -(-(address + num_bytes) // PAGE))
        for other in self.held.values():
            if pages.start < other.stop and other.start < pages.stop:
                return 712  # already registered
        self.held[address] = pages
        return 0

    def cudaHostUnregister(self, address):
        assert mapped(address), "the memory was given back while it was still registered"
        del self.held[address]


def mapped(address):
    """Whether the process still has this page."""
    for line in Path("/proc/self/maps").read_text().splitlines():
        low, high = (int(end, 16) for end in line.split()[0].split("-"))
        if low <= address < high:
            return True
    return False


@pytest.fixture
def driver(monkeypatch):
    def use(**options):
        made = Driver(**options)
        monkeypatch.setattr(placement, "cuda_runtime", lambda: made)
        return made

    return use


def test_it_lives_as_long_as_its_last_view(driver):
    books = driver()
    memory = placement.page_locked(5000).view(torch.int16).view(2, -1)
    view = memory[1, 3:]
    del memory
    view.fill_(7)
    assert len(books.held) == 1 and int(view.sum()) == 7 * view.numel()
    del view
    gc.collect()
    assert not books.held


def test_small_pieces_share_no_page(driver):
    books = driver()
    pieces = [placement.page_locked(100) for _ in range(20)]
    assert len(books.held) == 20 and books.calls == 20
    pieces.clear()
    gc.collect()
    assert not books.held


def test_a_store_that_fails_half_way_leaves_nothing_registered(driver, monkeypatch):
    books = driver(refuse=2)
    shape = kv_shape(device="cuda")
    where = ResolvedPlacement(
        place="pinned", manager="none", page_tokens=8, cache_frac=0.1, eviction="lru", record=False
    )
    store = PooledStore.__new__(PooledStore)
    store.shape, store.placement, store.pool_tokens = shape, where, 80
    store.k_pool, store.v_pool = [torch.empty(0)], [torch.empty(0)]
    with pytest.raises(RuntimeError, match=r"error 2.*ulimit -l.*method.placement=cpu"):
        store.allocate(0)
    gc.collect()
    assert books.calls == 2 and not books.held
    with pytest.raises(RuntimeError):
        allocate((1, 1, 8, 8), shape, "pinned")
