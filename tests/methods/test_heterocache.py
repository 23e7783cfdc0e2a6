"""HeteroCache against a naive reference: roles, budgets, drift, reloads and what they cost."""

from __future__ import annotations

import itertools
from statistics import median

import pytest
import torch
from retrobench_methods.heterocache import HeteroCache
from retrobench_methods.heterocache.config import head_tokens
from retrobench_methods.heterocache.roles import Roles

from retrobench.core.budget import Budget
from retrobench.core.method import AttentionArgs
from retrobench.core.spec import parse
from retrobench.measure.probe import CountingProbe
from tests.methods.inputs import layer_tensors
from tests.support import (
    build,
    kv_shape,
)

ARGS = AttentionArgs(scale=0.4)
LENGTH, NEW, STEPS = 80, 14, 3
KINDS = ["random", "clustered", "constant", "duplicates", "outliers"]
# by KV heads: roles of two layers, and satellites of the pivots
LAYOUTS = {
    1: ([["anchor"], ["volatile"]], [[[]], [[]]]),
    2: ([["satellite", "pivot"], ["anchor", "anchor"]], [[[], [0]], [[], []]]),
    3: (
        [["volatile", "pivot", "satellite"], ["pivot", "satellite", "satellite"]],
        [[[], [2], []], [[1, 2], [], []]],
    ),
}


def roles_of(groups, stability=(0.9, 0.3, 0.6, 0.8, 0.2, 0.5)):
    names, satellites = LAYOUTS[groups]
    values = iter(stability)
    stability_LG = [[next(values) for _ in row] for row in names]
    return Roles(role_LG=names, satellites_LG=satellites, stability_LG=stability_LG)


def made(shape, data, roles, budget, **options):
    """A built method and its probe."""
    config = parse(HeteroCache.Config, {"steps": STEPS, **options}, "method")
    probe = CountingProbe()
    method = HeteroCache(config, shape, probe, Budget.parse(budget) if budget else None)
    method.index.assign(roles)
    tokens = shape.prompt_tokens
    build(method, {n: tuple(x[:, :, :tokens] for x in part) for n, part in data.items()}, ARGS)
    return method, probe


def steps_of(method, data, shape):
    """Outputs of every step, by layer."""
    found = {layer: [] for layer in data}
    for t in range(shape.prompt_tokens, shape.max_tokens):
        for layer, part in data.items():
            q, k, v = (x[:, :, t : t + 1] for x in part)
            found[layer].append(method.decode(layer, q, k, v, ARGS)[:, :, 0])
    return found


def best_tokens(q_ND, k_SD, count):
    """Positions of the best ``count`` keys: pooled attention, the best query head, early first."""
    weight = (q_ND.double() @ k_SD.double().T * ARGS.scale).softmax(-1)
    around = torch.nn.functional.pad(weight, (2, 2))
    pooled = around.unfold(1, 5, 1).sum(-1).amax(0) / 5
    order = sorted(range(len(pooled)), key=lambda s: (-float(f"{pooled[s]:.9e}"), s))
    return set(order[:count])


def reference(part, row, pad, roles, i, counts, base, top):
    """Outputs ``o_HD`` of every step of a row and layer, prompt tokens read, and looks' reloads."""
    q, k, v = (x[row].float() for x in part)
    groups, n = len(k), LENGTH - pad
    group = len(q) // groups
    query = [q[g * group : (g + 1) * group] for g in range(groups)]
    prompt = [k[g, pad:LENGTH] for g in range(groups)]
    held = [best_tokens(query[g][:, LENGTH - 1], prompt[g], counts[g]) for g in range(groups)]
    compared = [best_tokens(query[g][:, LENGTH - 1], prompt[g], base) for g in range(groups)]
    outputs, read, moved, drifts, coming = [], 0, 0, [], {}
    for t in range(LENGTH, LENGTH + NEW):
        for g, tokens in coming.items():
            held[g], moved = tokens, moved + len(tokens)
        coming = {}
        out = []
        for g in range(groups):
            places = [pad + s for s in sorted(held[g])] + list(range(LENGTH, t + 1))
            read += len(places)
            weight = (query[g][:, t].double() @ k[g, places].double().T * ARGS.scale).softmax(-1)
            out.append(weight @ v[g, places].double())
        outputs.append(torch.cat(out))
        if (t - LENGTH + 1) % STEPS:
            continue
        for g in range(groups):
            leaves = roles.satellites_LG[i][g]
            watches = bool(leaves) or (top and roles.role_LG[i][g] == "volatile")
            if not watches or all(counts[h] == n for h in (g, *leaves)):
                continue
            sets = [best_tokens(query[g][:, t - w], prompt[g], base) for w in range(STEPS)]
            drifted = median(len(s & compared[g]) / base for s in sets) < 0.5
            if drifted:
                compared[g] = sets[0]
            if leaves:
                drifts.append(drifted)
            for h in ([g] if top else []) + (leaves if drifted else []):
                if counts[h] < n:
                    coming[h] = best_tokens(query[g][:, t], prompt[g], counts[h])
    return outputs, read, moved, drifts


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("heads", "groups"), [(4, 2), (9, 3), (4, 1)])
@pytest.mark.parametrize("full_heads", ["keep", "top"])
def test_steps_equal_the_reference(kind, heads, groups, full_heads):
    reloaded = []
    for dtype, eps in (("float32", 2e-5), ("bfloat16", 3e-2)):
        shape = kv_shape(
            pad_tokens=(0, 11), layers=(0, 3), num_heads=heads, num_kv_heads=groups,
            prompt_tokens=LENGTH, max_tokens=LENGTH + NEW, dtype=dtype,
        )  # fmt: skip
        data, roles = layer_tensors(kind, shape), roles_of(groups)
        budget = "60%" if full_heads == "keep" else "25%"
        method, probe = made(shape, data, roles, budget, full_heads=full_heads)
        counts, base = head_tokens(method.config, shape, method.budget, roles)
        outputs = steps_of(method, data, shape)
        method.report_counts()
        vector, drifts, index_bytes, read_all = 2 * 8 * shape.value_bytes, [], 0, 0
        for i, layer in enumerate(shape.layers):
            totals = {"kv": 0, "h2d": 0}
            for row, pad in enumerate(shape.pad_tokens):
                expected, read, moved, found = reference(
                    data[layer], row, pad, roles, i, counts[i][row], base[row], full_heads == "top"
                )
                for ours, theirs in zip(outputs[layer], expected, strict=True):
                    torch.testing.assert_close(ours[row].double(), theirs, atol=eps, rtol=eps)
                looks = (NEW // STEPS) * (LENGTH - pad) * len(method.index.watched_LB[i][row])
                totals["kv"] += read * vector
                totals["h2d"] += moved * vector + (full_heads == "top") * looks * vector // 2
                index_bytes, read_all = index_bytes + looks * vector // 2, read_all + read
                drifts += found
            assert {name: probe.by_layer(name)[layer] for name in totals} == totals
        assert sum(probe.by_layer("index").values()) == index_bytes
        assert method.stats()["looks"] == len(drifts)
        if drifts:
            rate = method.stats()["reload_rate"]
            assert rate == pytest.approx(sum(drifts) / len(drifts))
        reloaded += drifts
        method.close()
    if kind == "random" and groups > 1:
        assert any(reloaded)  # the reference has seen reloads
    if kind == "constant":
        assert not any(reloaded)  # nothing drifts


@pytest.mark.parametrize("budget", ["60%", "100%", None])
@pytest.mark.parametrize("placement", ["auto", "gpu"])
def test_plan_equals_what_is_held_and_how_it_is_fetched_changes_nothing(budget, placement):
    shape = kv_shape(
        pad_tokens=(0, 11), layers=(0, 3), num_heads=9, num_kv_heads=3,
        prompt_tokens=LENGTH, max_tokens=LENGTH + NEW,
    )  # fmt: skip
    data, outputs = layer_tensors("random", shape), []
    for prefetch in (True, False):
        options = {"placement": placement, "prefetch": prefetch, "keep_frac": 0.7}
        method, probe = made(shape, data, roles_of(3), budget, **options)
        planned = HeteroCache.plan(method.config, shape, method.budget)
        assert method.allocated() == planned and bool(planned.host) == (placement == "auto")
        outputs.append(torch.stack(list(itertools.chain(*steps_of(method, data, shape).values()))))
        assert method.allocated() == planned
        assert (probe.row()["bytes_per_step"].get("h2d", 0) > 0) == (
            placement == "auto" and budget != "100%"
        )
        if budget == "100%":
            assert method.stats()["looks"] == 0  # nothing could be reloaded
        method.close()
        assert method.allocated().total == 0
    assert torch.equal(*outputs)


def test_heads_share_by_the_inverse_of_their_stability():
    shape = kv_shape(
        layers=(0, 3), num_heads=9, num_kv_heads=3, prompt_tokens=1000, max_tokens=1010
    )
    config = parse(HeteroCache.Config, {}, "method")
    roles = roles_of(3, (0.1, 0.1, 0.2, 0.1, 0.4, 0.8))  # volatile, pivots: any stability
    counts, base = head_tokens(config, shape, Budget.parse("600tok"), roles)
    assert base == (200,)  # (6 x 600 - 3 x 1000) / 3
    assert counts[0][0][:2] == [1000, 1000] and counts[1][0][0] == 1000
    shares = counts[0][0][2], *counts[1][0][1:]
    assert sum(shares) == 600  # 5 : 2.5 : 1.25
    assert shares == pytest.approx((343, 171, 86), abs=1)
    top = parse(HeteroCache.Config, {"full_heads": "top"}, "method")
    counts, base = head_tokens(top, shape, Budget.parse("60tok"), roles)
    assert base == (60,) and sum(map(sum, (counts[0][0], counts[1][0]))) == 360
    assert counts[0][0][:2] == [60, 60] and counts[1][0][0] == 60
    zero = roles_of(3, (0.1, 0.1, 0.0, 0.1, 0.4, 0.8))  # takes all that it can hold
    counts, _ = head_tokens(config, shape, Budget.parse("800tok"), zero)
    assert counts[0][0][2] == 1000 and sum(map(sum, (counts[0][0], counts[1][0]))) == 4800


def test_a_budget_below_the_floor_names_it():
    shape = kv_shape(layers=(0, 3), num_heads=9, num_kv_heads=3, prompt_tokens=1000)
    for budget, said in (("10%", "budget: 10%"), (None, "method.keep_frac=0.5")):
        config = parse(HeteroCache.Config, {}, "method")
        with pytest.raises(ValueError, match="3 of 6 KV heads") as refused:
            head_tokens(config, shape, Budget.parse(budget) if budget else None, roles_of(3))
        message = str(refused.value)
        assert message.startswith(said) and "the least is 501 tokens (50.0% of the" in message
        assert "use method.full_heads=top" in message and "\n" not in message
    head_tokens(config, shape, Budget.parse("501tok"), roles_of(3))
    only = Roles(role_LG=[["volatile"]], satellites_LG=[[[]]], stability_LG=[[0.1]])
    one = kv_shape(num_kv_heads=1, prompt_tokens=1000)
    with pytest.raises(ValueError, match=r"the least is 1000 tokens \(100.0%"):
        head_tokens(config, one, Budget.parse("999tok"), only)
    assert head_tokens(config, one, Budget.parse("100%"), only)[0] == [[[1000]]]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"pool_tokens": 4}, "pool_tokens=4 must be odd.*use 3 or 5"),
        ({"full_heads": "all"}, "method.full_heads=all: no such value.*keep, top"),
        ({"steps": 0}, "method.steps must be in"),
        ({"similarity_at": "decode"}, "did you mean decode_median"),
    ],
)
def test_bad_options(options, said):
    with pytest.raises(ValueError, match=said):
        parse(HeteroCache.Config, options, "method")
