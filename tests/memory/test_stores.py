"""The contract matrix: every index on every store gives the same keys, values and outputs."""

from __future__ import annotations

import itertools

import pytest
import torch

from retrobench.engine.attention.exact import dense_decode
from retrobench.measure.probe import CountingProbe
from retrobench.memory.placement import PlacementConfig, ResolvedPlacement
from retrobench.memory.pool import PooledStore, make_store, plan_store
from retrobench.memory.ragged import RaggedStore
from retrobench.memory.selection import Everything, Spans
from retrobench.memory.store import ResidentStore
from tests.support import prompt_layer

from .indexes import (
    ARGS,
    INDEXES,
    NEW,
    PROMPT,
    STORES,
    Kept,
    Largest,
    Sampled,
    Shuffled,
    Split,
    make_shape,
    outputs,
)


@pytest.mark.parametrize(("place", "manager"), STORES)
@pytest.mark.parametrize("heads", [2, 4])
def test_gather_equals_a_plain_store(place, manager, heads, poisoned_empty):
    torch.manual_seed(0)
    shape = make_shape()
    config = PlacementConfig(placement=place, cache=manager, cache_frac=0.2, page_tokens=4)
    plain, store = ResidentStore(shape), make_store(config, shape)
    assert isinstance(store, ResidentStore) == (manager == "none")
    for layer in shape.layers:
        prompt = prompt_layer(None, *torch.randn(2, 2, 2, PROMPT, 8).unbind(0))
        plain.load(layer, prompt), store.load(layer, prompt)
        assert torch.equal(plain.keys(layer), store.keys(layer))
    for step in range(NEW):
        for layer in shape.layers:
            kv = torch.randn(2, 2, 2, 1, 8).unbind(0)
            plain.append(layer, *kv), store.append(layer, *kv)
            assert torch.equal(plain.values(layer), store.values(layer))
            assert torch.equal(plain.positions(layer), store.positions(layer))
            token = torch.rand(2, heads, PROMPT + 1 + step).argsort(-1)[..., :30]
            token = token.masked_fill(torch.rand(token.shape) < 0.2, -1)
            pairs = zip(store.gather(layer, token), plain.gather(layer, token), strict=True)
            for got, expected in pairs:
                assert got.isfinite().all()
                assert torch.equal(got[token >= 0], expected[token >= 0])
    assert store.footprint() == plan_store(config, shape)
    probe = CountingProbe()
    store.report_counts(probe)
    if manager != "none":
        for layer in shape.layers:
            moved = {name: probe.by_layer(name)[layer] for name in ("hits", "misses", "h2d")}
            assert moved["hits"] > 0 and moved["h2d"] == moved["misses"] * 4 * 2 * 8 * 4
    store.close()
    assert store.footprint().total == 0


@pytest.mark.parametrize("index", INDEXES)
def test_an_index_gives_the_same_output_on_every_store(index):
    expected, counted, *_ = outputs(index)
    for place, manager in STORES:
        got, row, *_ = outputs(index, placement=place, cache=manager, cache_frac=0.15)
        torch.testing.assert_close(got, expected, atol=2e-6, rtol=1e-5)
        assert row["attended_tokens"] == pytest.approx(counted["attended_tokens"])
        assert row["bytes_per_step"]["kv"] == counted["bytes_per_step"]["kv"]
        gathers = index not in (Kept, Shuffled)
        if manager != "none" and gathers:
            assert 0 < row["hit_ratio"] < 1 and row["bytes_per_step"]["h2d"] > 0
            assert set(row["hit_ratio_of_layer"]) == {"0", "2"}


@pytest.mark.parametrize("index", INDEXES)
def test_an_index_gives_the_same_output_on_packed_heads(index, poisoned_empty):
    expected, counted, held, *_ = outputs(index)
    got, row, packed, _, method = outputs(index, RaggedStore)
    torch.testing.assert_close(got, expected, atol=2e-6, rtol=1e-5)
    assert row["attended_tokens"] == pytest.approx(counted["attended_tokens"])
    assert row["bytes_per_step"]["kv"] == counted["bytes_per_step"]["kv"]
    kept = [4 * PROMPT] * 2  # 2 rows and heads
    if index in (Kept, Shuffled):  # no padding any more
        positions = [method.store.positions(layer) for layer in method.shape.layers]
        kept = [int(((position >= 0) & (position < PROMPT)).sum()) for position in positions]
    if index is Kept:  # 60 and 30 tokens in heads that the other store holds at 60
        assert max(kept) < 2 * (60 + 30) and packed.total < 0.9 * held.total
    assert packed == RaggedStore.plan(method.shape, kept)
    method.close()
    assert method.allocated().total == 0


@pytest.mark.parametrize("index", INDEXES)
def test_an_index_attends_what_it_says(index):
    """Against softmax over the tokens, head by head."""
    got, _, _, (q, kv), method = outputs(index)
    step, layer = PROMPT + 29, 2
    k, v = kv[layer][..., : PROMPT + 30, :].double()
    selection = method.index.select(layer, q[:, :, step, None], method.store, ARGS)
    for row, head in itertools.product(range(2), range(4)):
        tokens = _tokens(index, method, selection, layer, q[:, :, step, None], row, head)
        logit = k[row, head // 2, tokens] @ q[row, head, step].double() * ARGS.scale
        weight = (logit + (0.6931471805599453 if index is Sampled else 0)).softmax(0)
        expected = weight @ v[row, head // 2, tokens]
        torch.testing.assert_close(
            got.view(30, 2, 2, 4, 8)[-1, 1, row, head].double(), expected, atol=1e-5, rtol=1e-4
        )


def _tokens(index, method, selection, layer, query, row, head):
    group, pad = head // 2, method.shape.pad_tokens[row]
    if index is Split:  # both halves
        selection = Largest.select(method.index, layer, query, method.store, ARGS)
    if isinstance(selection, Everything):
        position = method.store.positions(layer)[row, group]
        return position[position >= 0].long()
    if isinstance(selection, Spans):
        first, size = selection.first_BGC[row, group], selection.size_BGC[row, group]
        chosen = selection.chosen_BGN[row, group].tolist()
        spans = [range(int(first[c]), int(first[c] + size[c])) for c in chosen]
        return torch.tensor([t for span in spans for t in span if t >= pad])
    token = selection.token_BGR[row, head if selection.token_BGR.shape[1] == 4 else group]
    return token[token >= 0]


def test_eviction_frees_bytes_and_ragged_heads_keep_their_own():
    full, evicted = outputs(Shuffled)[2], outputs(Kept)[2]
    assert evicted.total < 0.6 * full.total
    _, row, *_ = outputs(Kept)
    # 60 and 30 kept tokens, those of the padding left out, and up to 30 new ones
    assert row["attended_tokens"] == pytest.approx(45 + 15.5, abs=3)


def test_both_managers_count_the_same_and_less_than_the_bound():
    rows = [outputs(Largest, cache=manager, cache_frac=0.15)[1] for manager in ("host", "device")]
    assert rows[0]["pages_per_step"] == rows[1]["pages_per_step"]
    shape = make_shape()
    config = PlacementConfig(cache="host", cache_frac=0.15, page_tokens=4, cache_bound=True)
    store = make_store(config, shape)
    assert isinstance(store, PooledStore) and store.cache is not None
    store.load(0, prompt_layer(None, *torch.randn(2, 2, 2, PROMPT, 8).unbind(0)))
    for _ in range(20):
        store.gather(0, torch.rand(2, 2, PROMPT).argsort(-1)[..., :20])
    store.report_counts(CountingProbe())
    stats = store.cache.stats()
    assert 0 < stats["hit_ratio"] <= stats["best_hit_ratio"] < 1


def test_everything_is_full_attention_whatever_the_order():
    got, _, _, (q, kv), _ = outputs(Shuffled)
    k, v = kv[0][..., : PROMPT + 1, :]
    expected = dense_decode(q[:, :, PROMPT, None], k, v, ARGS, (0, 9))
    torch.testing.assert_close(got.view(30, 2, 2, 4, 8)[0, 0], expected[:, :, 0])


def test_auto_and_impossible_combinations():
    assert ResolvedPlacement.of(PlacementConfig(placement="auto"), "cpu").place == "cpu"
    on_gpu = ResolvedPlacement.of(PlacementConfig(placement="auto"), "cuda:0")
    assert (on_gpu.place, on_gpu.manager) == ("pinned", "device")
    assert ResolvedPlacement.of(PlacementConfig(), "cuda").manager == "none"
    fifo = PlacementConfig(placement="pinned", eviction="fifo")
    assert ResolvedPlacement.of(fifo, "cuda").manager == "host"
    with pytest.raises(ValueError, match="cache=host"):
        ResolvedPlacement.of(PlacementConfig(cache="device", eviction="lfu"), "cpu")
    bound = PlacementConfig(cache_bound=True, placement="pinned")
    assert ResolvedPlacement.of(bound, "cuda").record
    with pytest.raises(ValueError, match=r"cache_bound=true .*there is none"):
        ResolvedPlacement.of(bound, "cpu")
