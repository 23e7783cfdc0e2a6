"""SnapKV, AdaKV and PyramidKV against a naive reference; budgets, bytes and bad options."""

from __future__ import annotations

import pytest
import torch
from retrobench_methods.adakv import AdaKV
from retrobench_methods.pyramidkv import PyramidKV
from retrobench_methods.snapkv import SnapKV

from retrobench.core.budget import Budget
from retrobench.core.method import AttentionArgs
from retrobench.core.spec import parse
from retrobench.measure.probe import CountingProbe
from tests.methods.inputs import layer_tensors
from tests.support import build, kv_shape

ARGS = AttentionArgs(scale=0.4)
LENGTH, WINDOW, NEW = 90, 6, 5
KINDS = ["random", "clustered", "constant", "duplicates", "outliers"]
METHODS = [SnapKV, AdaKV, PyramidKV]


def made(method_class, shape, data, budget, **options):
    """A built method and its probe."""
    config = parse(method_class.Config, {"window_tokens": WINDOW, **options}, "method")
    probe = CountingProbe()
    method = method_class(config, shape, probe, Budget.parse(budget) if budget else None)
    needs = method_class.needs_of(config)
    assert needs.prompt_queries == WINDOW
    prompt = {
        layer: (q[:, :, LENGTH - WINDOW - 3 : LENGTH], k[:, :, :LENGTH], v[:, :, :LENGTH])
        for layer, (q, k, v) in data.items()
    }  # another method of the group may have asked for three more queries
    build(method, prompt, ARGS)
    return method, probe


def reference_votes(q_HSD, k_GSD, pad, pool, width):
    """Votes for every position before the window, ``GS``, in float64, token by token."""
    groups, last = len(k_GSD), LENGTH - WINDOW
    votes = torch.zeros(groups, last, dtype=torch.float64)
    for h, query_SD in enumerate(q_HSD.double()):
        group = h // (len(q_HSD) // groups)
        for t in range(max(pad, last), LENGTH):
            logit = k_GSD[group, pad : t + 1].double() @ query_SD[t] * ARGS.scale
            votes[group, pad:] += logit.softmax(0)[: last - pad] / (len(q_HSD) // groups)
    pooled = torch.zeros_like(votes)
    for s in range(pad, last):
        near = votes[:, max(pad, s - width // 2) : s + width // 2 + 1]
        pooled[:, s] = near.amax(1) if pool == "max" else near.sum(1) / width
    return pooled


def is_best(votes_S, kept, pad, eps):
    """Whether so many positions have the highest votes, up to rounding."""
    inside = torch.zeros(len(votes_S), dtype=torch.bool)
    inside[list(kept)] = True
    others = ~inside
    others[:pad] = False
    return not kept or not others.any() or votes_S[inside].min() >= votes_S[others].max() - eps


def kept_positions(method, layer, row, group):
    position = method.store.positions(layer)[row, group]
    return set(position[(position >= 0) & (position < LENGTH)].tolist())


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("heads", "groups"), [(4, 2), (9, 3), (4, 1)])
@pytest.mark.parametrize("method_class", METHODS)
def test_what_is_kept_equals_the_reference(method_class, heads, groups, kind):
    for dtype, pool in (("float32", "max"), ("float32", "avg"), ("bfloat16", "max")):
        shape = kv_shape(
            pad_tokens=(0, 11), layers=(0, 3, 4), num_heads=heads, num_kv_heads=groups,
            prompt_tokens=LENGTH, max_tokens=LENGTH + NEW, dtype=dtype,
        )  # fmt: skip
        data = layer_tensors(kind, shape)
        method, _ = made(method_class, shape, data, "30%", pool=pool, pool_tokens=5)
        total = {(row, layer): 0 for row in range(2) for layer in shape.layers}
        for layer, (q, k, _) in data.items():
            for row, pad in enumerate(shape.pad_tokens):
                votes = reference_votes(q[row], k[row], pad, pool, 5)
                for group in range(groups):
                    kept = kept_positions(method, layer, row, group)
                    total[row, layer] += len(kept)
                    window = set(range(LENGTH - WINDOW, LENGTH))
                    assert window <= kept and min(kept) >= pad
                    assert is_best(votes[group], kept - window, pad, 1e-5)
                    if kind == "constant" and pool == "max":  # equal votes: the earliest
                        assert kept - window == set(range(pad, pad + len(kept) - WINDOW))
        for row, pad in enumerate(shape.pad_tokens):
            budget = round(0.3 * (LENGTH - pad))
            by_layer = [total[row, layer] for layer in shape.layers]
            assert sum(by_layer) == budget * groups * 3
            if method_class is not PyramidKV:
                assert by_layer == [budget * groups] * 3


@pytest.mark.parametrize("method_class", METHODS)
@pytest.mark.parametrize("budget", ["30%", "100%", None])
def test_outputs_counts_and_bytes(method_class, budget):
    """Softmax over what is kept and what came since; the counters are those tokens."""
    shape = kv_shape(
        pad_tokens=(0, 11), layers=(0, 3), prompt_tokens=LENGTH, max_tokens=LENGTH + NEW
    )
    data = layer_tensors("clustered", shape, seed=3)
    method, probe = made(method_class, shape, data, budget, capacity_tokens=20)
    planned = method_class.plan(method.config, shape, method.budget)
    assert method.allocated() == planned
    whole = method_class.plan(method.config, shape, Budget.parse("100%"))
    assert budget == "100%" or planned.total < 0.5 * whole.total
    attended = {layer: 0 for layer in shape.layers}
    for step in range(NEW):
        at = slice(LENGTH + step, LENGTH + step + 1)
        for layer, (q, k, v) in data.items():
            out = method.decode(layer, q[:, :, at], k[:, :, at], v[:, :, at], ARGS)
            for row in range(2):
                for head in range(4):
                    held = method.store.positions(layer)[row, head // 2]
                    held = held[held >= 0].long()
                    attended[layer] += len(held) / 2
                    assert set(range(LENGTH, LENGTH + step + 1)) <= set(held.tolist())
                    logit = k[row, head // 2, held] @ q[row, head, LENGTH + step] * ARGS.scale
                    expected = logit.softmax(0) @ v[row, head // 2, held]
                    torch.testing.assert_close(out[row, head, 0], expected, atol=1e-5, rtol=1e-4)
    for layer, count in attended.items():
        assert probe.by_layer("attended")[layer] == pytest.approx(count / 4)
        assert probe.by_layer("kv")[layer] == count * 2 * 8 * 4
    method.close()
    assert method.allocated().total == 0


def test_heads_compete_for_all_of_the_budget_but_the_floor():
    shape = kv_shape(prompt_tokens=LENGTH, max_tokens=LENGTH + NEW)
    data = layer_tensors("random", shape)
    q, k, v = data[0]
    k[:, 1] *= 0.05  # looks everywhere alike: the other head owns the best votes
    k[:, 0] *= 3
    budget, free = 30, 30 - WINDOW
    votes = reference_votes(q[0], k[0], 0, "max", 7)
    best = votes.flatten().topk(2 * free).indices // votes.shape[1]
    won = int((best == 0).sum())
    for floor in (0.0, 0.2, 1.0):
        method, _ = made(AdaKV, shape, data, f"{budget}tok", floor=floor)
        kept = [len(kept_positions(method, 0, 0, group)) - WINDOW for group in range(2)]
        assert sum(kept) == 2 * free
        assert abs(kept[0] - ((1 - floor) * won + floor * free)) < 1
    assert won != free  # else nothing was tested


def test_the_pyramid_follows_the_released_rule():
    """KVCache-Factory: from 2 b - b / beta down to b / beta, in equal steps."""
    layers = tuple(range(6))
    shape = kv_shape(layers=layers, prompt_tokens=1000, max_tokens=1010)
    options = {"window_tokens": 8}
    for budget, beta in ((108, 20), (108, 1), (58, 5), (508, 20), (908, 20)):
        config = parse(PyramidKV.Config, {**options, "beta": beta}, "method")
        kept = PyramidKV.index_class.kept(config, shape, Budget.parse(f"{budget}tok"))
        kept, mean = [row[0] for row in kept], budget - 8
        low = mean // beta
        high = 2 * mean - low
        if high >= 1000 - 8:
            high = 1000 - 8
            low = 2 * mean - high
        step = (high - low) / 5
        assert sum(kept) == 6 * budget
        assert kept == pytest.approx([high - i * step + 8 for i in layers], abs=1.01)
        assert kept == sorted(kept, reverse=True) and max(kept) <= 1000
    one_layer = kv_shape(prompt_tokens=1000, max_tokens=1010)
    config = parse(PyramidKV.Config, options, "method")
    assert PyramidKV.index_class.kept(config, one_layer, Budget.parse("5%")) == [(50,)]


@pytest.mark.parametrize("method_class", METHODS)
def test_bad_options_are_one_line(method_class):
    shape = kv_shape(prompt_tokens=LENGTH, max_tokens=LENGTH + NEW)
    config = parse(method_class.Config, {"window_tokens": WINDOW}, "method")
    for budget in ("5tok", f"{WINDOW}tok"):
        with pytest.raises(ValueError, match=f"window at its end alone takes {WINDOW}.*raise the"):
            method_class.plan(config, shape, Budget.parse(budget))
    method_class.plan(config, shape, Budget.parse(f"{WINDOW + 1}tok"))
    with pytest.raises(ValueError, match="pool_tokens=4 must be odd.*use 3 or 5"):
        parse(method_class.Config, {"pool_tokens": 4}, "method")
    with pytest.raises(ValueError, match="capacity_tokens=8 must be greater than window_tokens"):
        parse(method_class.Config, {"capacity_tokens": 8, "window_tokens": 8}, "method")
    with pytest.raises(ValueError, match="max, avg"):
        parse(method_class.Config, {"pool": "median"}, "method")
