"""Stores and page caches: every placement and manager gives the same keys, values and outputs."""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import pytest
import torch

from retrobench.core.method import AttentionArgs
from retrobench.core.shapes import KVShape
from retrobench.engine.attention.selective import Selection as Chosen
from retrobench.engine.attention.selective import (
    SelectiveMethod,
    StatelessIndex,
    StaticConfig,
    static_mask,
    top_tokens,
)
from retrobench.measure.probe import CountingProbe
from retrobench.memory.placement import DeviceStore, PlacementConfig, Tiers, make_store, plan_store
from retrobench.memory.pool import OffloadStore

PLACES, MANAGERS = ("gpu", "pinned", "cpu"), ("none", "host", "device")
ARGS = AttentionArgs(scale=0.3)


def make_shape(prompt=200, new=40, pads=(0, 9)):
    return KVShape(
        pad_tokens=pads,
        layers=(0, 2),
        num_heads=4,
        num_kv_heads=2,
        head_dim=8,
        prompt_tokens=prompt,
        max_tokens=prompt + new,
        dtype="float32",
    )


@pytest.mark.parametrize(("place", "manager"), itertools.product(PLACES, MANAGERS))
@pytest.mark.parametrize("heads", [2, 4])
def test_gather_equals_a_plain_store(place, manager, heads, poisoned_empty):
    torch.manual_seed(0)
    shape = make_shape()
    config = PlacementConfig(placement=place, cache=manager, cache_frac=0.2, page_tokens=4)
    plain, store = DeviceStore(shape), make_store(config, shape)
    assert isinstance(store, DeviceStore) == (manager == "none")
    for chunk in (150, 50):
        for layer in shape.layers:
            kv = torch.randn(2, 2, 2, chunk, 8).unbind(0)
            plain.append(layer, *kv), store.append(layer, *kv)
    for layer in shape.layers:
        assert torch.equal(plain.keys(layer), store.keys(layer))
        store.offload(layer)
    for step in range(40):
        for layer in shape.layers:
            kv = torch.randn(2, 2, 2, 1, 8).unbind(0)
            plain.append(layer, *kv), store.append(layer, *kv)
            assert torch.equal(plain.values(layer), store.values(layer))
            token = torch.rand(2, heads, 201 + step).argsort(-1)[..., :30]
            token = token.masked_fill(torch.rand(token.shape) < 0.2, -1)
            pairs = zip(store.gather(layer, token), plain.gather(layer, token), strict=True)
            for got, expected in pairs:
                assert got.isfinite().all()
                assert torch.equal(got[token >= 0], expected[token >= 0])
    assert store.footprint() == plan_store(config, shape)
    moved = store.traffic()
    if manager != "none":
        assert [m.layer for m in moved] == [0, 2] and all(m.hits and m.misses for m in moved)
        assert all(m.h2d_bytes == m.misses * 4 * 2 * 8 * 4 for m in moved)
    store.close()
    assert store.footprint().total == 0


class Largest(StatelessIndex):
    """Tokens with the largest keys; enough to drive a store."""

    def select(self, layer, q_BHTD, store, args):
        keys = store.keys(layer)
        zone = (self.config.sink_tokens, self.config.local_tokens)
        static, exists = static_mask(self.shape.pad_tokens, keys.shape[2], *zone, keys.device)
        score = (keys * q_BHTD[:, ::2]).sum(-1)
        return Chosen(top_tokens(score, static, exists, self.retrieved))


class Selector(SelectiveMethod):
    name = "selector"

    @dataclass(frozen=True, kw_only=True)
    class Config(StaticConfig, PlacementConfig):
        """A selector that can offload."""

    def make_index(self):
        return Largest(self.config, self.shape, self.budget)


def outputs(**options):
    torch.manual_seed(1)
    shape = make_shape()
    config = Selector.Config(retrieval_frac=0.1, local_tokens=8, page_tokens=4, **options)
    probe = CountingProbe()
    method, out = Selector(config, shape, probe), []
    for phase, steps in (("prefill", 1), ("decode", 30)):
        for _ in range(steps):
            tokens = 200 if phase == "prefill" else 1
            for layer in shape.layers:
                q, k, v = (torch.randn(2, h, tokens, 8) for h in (4, 2, 2))
                out.append(getattr(method, phase)(layer, q, k, v, ARGS))
            method.seal() if phase == "prefill" else method.step()
    assert method.allocated() == Selector.plan(config, shape)
    return torch.cat([o[:, :, -1] for o in out]), probe.row()


def test_a_method_gives_the_same_output_on_every_tier():
    expected, _ = outputs()
    for place, manager in itertools.product(PLACES, MANAGERS):
        got, row = outputs(placement=place, cache=manager, cache_frac=0.15)
        assert torch.equal(got, expected)
        assert (row["hit_ratio"] is None) == (manager == "none")
        if manager != "none":
            assert 0 < row["hit_ratio"] < 1 and row["bytes_per_step"]["h2d"] > 0
            assert set(row["hit_ratio_of_layer"]) == {"0", "2"}


def test_both_managers_count_the_same_and_less_than_the_bound():
    rows = [outputs(cache=manager, cache_frac=0.15)[1] for manager in ("host", "device")]
    assert rows[0]["pages_per_step"] == rows[1]["pages_per_step"]
    shape = make_shape()
    config = PlacementConfig(cache="host", cache_frac=0.15, page_tokens=4, cache_bound=True)
    store = make_store(config, shape)
    assert isinstance(store, OffloadStore) and store.cache is not None
    store.append(0, *torch.randn(2, 2, 2, 200, 8).unbind(0))
    for _ in range(20):
        store.gather(0, torch.rand(2, 2, 200).argsort(-1)[..., :20])
    store.traffic()
    stats = store.cache.stats()
    assert 0 < stats["hit_ratio"] <= stats["best_hit_ratio"] < 1


def test_auto_and_impossible_combinations():
    assert Tiers.of(PlacementConfig(placement="auto"), "cpu").place == "cpu"
    on_gpu = Tiers.of(PlacementConfig(placement="auto"), "cuda:0")
    assert (on_gpu.place, on_gpu.manager) == ("pinned", "device")
    assert Tiers.of(PlacementConfig(), "cuda").manager == "none"
    fifo = PlacementConfig(placement="pinned", eviction="fifo")
    assert Tiers.of(fifo, "cuda").manager == "host"
    with pytest.raises(ValueError, match="cache=host"):
        Tiers.of(PlacementConfig(cache="device", eviction="lfu"), "cpu")
