"""MagicPIG equals a plain reference, and its weights make the sample an unbiased one."""

from __future__ import annotations

import itertools
import math
from math import comb

import pytest
import torch
from retrobench_methods.magicpig import MagicPig
from retrobench_methods.magicpig.config import MagicPigConfig
from retrobench_methods.magicpig.tables import at_least

from retrobench.core.budget import Budget
from retrobench.core.method import AttentionArgs
from retrobench.core.spec import parse
from retrobench.engine.attention.exact import dense_decode
from retrobench.measure.probe import CountingProbe
from retrobench.run.plan import plan_summary
from retrobench.run.spec import parse_run
from tests.memory.indexes import STORES
from tests.support import architecture

from .inputs import HEADS, KINDS, decoded, shape_of, tensors

ARGS = AttentionArgs(scale=0.3)
SMALL = {"bits": 4, "tables": 12, "local_tokens": 8, "dense_layers": ()}


def collisions(q_D, k_SD, plane_DC, bits):
    """Tables in which each key meets the query, by comparing codes one by one."""
    sides = [(x @ plane_DC > 0).view(-1, bits) for x in (q_D, *k_SD)]
    return torch.tensor([int((s == sides[0]).all(1).sum()) for s in sides[1:]])


def tail(p, trials, least):
    """P(Bin(trials, p) >= least), term by term."""
    return sum(comb(trials, j) * p**j * (1 - p) ** (trials - j) for j in range(least, trials + 1))


def log_weight(q_D, k_D, config, least, share=1.0):
    cosine = torch.dot(q_D, k_D) / max(1e-30, float(q_D.norm() * k_D.norm()))
    meet = (1 - math.acos(max(-1.0, min(1.0, float(cosine)))) / math.pi) ** config.bits
    found = share * tail(meet, config.tables, least)
    found += (1 - share) * tail(meet, config.tables, least + 1)
    return -math.log(min(1.0, max(1e-4, found)))


def reference(method, qkv, row, head, t, least=None, chosen=None):
    """Output of one query head in float64; ``chosen``: slots and share that a budget took."""
    config, shape = method.config, method.shape
    g = head // (shape.num_heads // shape.num_kv_heads)
    pad, prompt = shape.pad_tokens[row], shape.prompt_tokens
    q, k, v = qkv[0][row, head, t].float(), *(x[row, g].float() for x in qkv[1:])
    first, last = min(pad + config.sink_tokens, prompt), prompt - config.local_tokens
    free = list(range(first, max(first, last)))
    mean = k[free].mean(0) if free and config.centre else torch.zeros_like(q)
    count = collisions(q, k[free] - mean, method.index.plane_LGDC[0, g], config.bits)
    share = 1.0
    if chosen is not None:
        picked = sorted(s - first for s in chosen)
        least = int(count[picked].min())
        share = int((count[picked] == least).sum()) / int((count == least).sum())
        assert set((count > least).nonzero()[:, 0].tolist()) <= set(picked)
    else:
        picked = (count >= least).nonzero()[:, 0].tolist()
    token = [s for s in range(pad, t + 1) if s not in set(free)] + [free[s] for s in picked]
    weight = [0.0] * (len(token) - len(picked))
    weight += [log_weight(q, k[free[s]] - mean, config, least, share) for s in picked]
    logit = k[token].double() @ q.double() * ARGS.scale + torch.tensor(weight).double()
    return set(token), logit.softmax(0) @ v[token].double()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("heads", HEADS)
@pytest.mark.parametrize(
    ("dtype", "centre"), [("float32", True), ("float32", False), ("bfloat16", True)]
)
def test_sample_and_output_equal_the_reference(kind, heads, dtype, centre):
    qkv = tensors(kind, heads, 83, batch=2, dtype=dtype)
    method = MagicPig(MagicPigConfig(centre=centre, **SMALL), shape_of(*qkv[:2], 80, (0, 13)))
    tolerance = 2e-4 if dtype == "float32" else 3e-2
    for t, out in decoded(method, qkv, ARGS):
        chosen = method.index.select(0, qkv[0][:, :, t : t + 1], method.store, ARGS).token_BGR
        for row, head in itertools.product(range(2), range(heads[0])):
            token, expected = reference(method, qkv, row, head, t, least=2)
            got = chosen[row, head][chosen[row, head] >= 0].tolist()
            assert len(got) == len(set(got)) and set(got) == token
            torch.testing.assert_close(
                out[row, head].double(), expected, atol=tolerance, rtol=tolerance
            )


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("budget", ["15%", "40%", "90%"])
def test_a_budget_takes_what_collides_most(kind, budget):
    qkv = tensors(kind, (4, 2), 83, batch=2)
    shape = shape_of(*qkv[:2], 80, (0, 13))
    method = MagicPig(
        MagicPigConfig(**SMALL | {"local_tokens": 4}), shape, None, Budget.parse(budget)
    )
    for t, out in decoded(method, qkv, ARGS):
        chosen = method.index.select(0, qkv[0][:, :, t : t + 1], method.store, ARGS)
        for row, head in itertools.product(range(2), range(4)):
            total = round(float(budget[:-1]) / 100 * (80 - shape.pad_tokens[row]))
            sampled = chosen.token_BGR[row, head, -chosen.sampled :]
            sampled = sampled[sampled >= 0].tolist()
            assert len(set(sampled)) == len(sampled) == total - 8
            token, expected = reference(method, qkv, row, head, t, chosen=sampled)
            assert len(token) == total + t - 79
            torch.testing.assert_close(out[row, head].double(), expected, atol=2e-4, rtol=2e-4)


@pytest.mark.parametrize("bits", [1, 10])
def test_nothing_is_weighed_where_nothing_is_left_out(bits):
    qkv = tensors("constant", (4, 2), 123, batch=2)
    shape = shape_of(*qkv[:2], 20, (0, 7))
    config = MagicPigConfig(**SMALL | {"bits": bits, "tables": 150})
    for t, out in decoded(MagicPig(config, shape, None, Budget.parse("100%")), qkv, ARGS):
        q, k, v = (x[:, :, : t + 1] for x in qkv)
        expected = dense_decode(q[:, :, -1:], k, v, ARGS, (0, 7))[:, :, 0]
        torch.testing.assert_close(out, expected, atol=1e-5, rtol=1e-4)


def test_prompts_within_the_static_zone_are_attended_whole():
    qkv, pads = tensors("random", (4, 2), 15, batch=2), (0, 5)
    method = MagicPig(MagicPigConfig(**SMALL), shape_of(*qkv[:2], 12, pads))
    for t, out in decoded(method, qkv, ARGS):
        k, v = (x[:, :, : t + 1] for x in qkv[1:])
        expected = dense_decode(qkv[0][:, :, t : t + 1], k, v, ARGS, pads)[:, :, 0]
        torch.testing.assert_close(out, expected, atol=1e-5, rtol=1e-4)


def test_the_chance_to_be_found_is_that_of_the_paper():
    p = torch.tensor([0.0, 1e-6, 1e-3, 0.02, 0.3, 0.97, 1.0])
    for tables, least in ((150, 2), (150, 0), (12, 12), (12, 5), (150, 40), (150, 149)):
        expected = torch.tensor([tail(x, tables, least) for x in p.double().tolist()])
        found = at_least(p[None, None], tables, torch.tensor([[[least]]]))[0, 0].float()
        torch.testing.assert_close(found, expected.float(), atol=1e-6, rtol=1e-4)
    w = p.double()
    paper = 1 - (1 - w) ** 150 - 150 * w * (1 - w) ** 149
    found = at_least(p[None, None], 150, torch.tensor([[[2]]]))[0, 0].float()
    torch.testing.assert_close(found, paper.float(), atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize("budget", [None, "30%"])
def test_the_weighted_sample_has_the_mass_of_all_tokens_on_average(budget):
    """Over many hash functions; a floating threshold is nearly unbiased."""
    qkv = tensors("random", (1, 1), 201, dim=16, seed=4)
    shape, mass = shape_of(*qkv[:2], 200), []
    budget = budget and Budget.parse(budget)
    true = (qkv[1][0, 0, :200] @ qkv[0][0, 0, 200] * ARGS.scale).exp().sum()
    for seed in range(300):
        config = MagicPigConfig(**SMALL | {"local_tokens": 0, "sink_tokens": 0}, seed=seed)
        method = MagicPig(config, shape, None, budget)
        list(decoded(method, qkv, ARGS))
        q = qkv[0][:, :, 200:]
        chosen = method.index.select(0, q, method.store, ARGS)
        k, _ = method.store.gather(0, chosen.token_BGR)
        weight = method.index.log_weight(0, q, k, chosen)
        logit = (k[0, 0] @ q[0, 0, 0] * ARGS.scale + weight[0, 0])[chosen.token_BGR[0, 0] >= 0]
        mass.append(logit[chosen.token_BGR.shape[-1] - chosen.sampled :].exp().sum())
    ratio = torch.stack(mass) / true
    error = float(ratio.std() / 300**0.5)
    assert abs(float(ratio.mean()) - 1) < 4 * error + (0 if budget is None else 0.05)


def test_hash_functions_come_from_the_seed():
    qkv = tensors("clustered", (4, 2), 210, dim=16)
    shape = shape_of(*qkv[:2], 200)
    found = []
    for seed in (0, 0, 1):
        method = MagicPig(MagicPigConfig(**SMALL, seed=seed), shape)
        found.append(torch.stack([out for _, out in decoded(method, qkv, ARGS)]))
    assert torch.equal(found[0], found[1]) and not torch.equal(found[0], found[2])


def test_dense_layers_are_data():
    shape = shape_of(*tensors("random", (4, 2), 90)[:2], 80, layers=tuple(range(6)))
    for given, expected in ((None, [0, 3]), ((), []), ((1, 2), [1, 2])):
        assert (
            MagicPig(MagicPigConfig(dense_layers=given), shape).stats()["dense_layers"] == expected
        )


def test_a_dense_layer_attends_everything():
    qkv = tensors("clustered", (4, 2), 90, batch=2)
    shape = shape_of(*qkv[:2], 80, (0, 9), layers=(0, 1, 2))
    method = MagicPig(
        MagicPigConfig(**SMALL | {"dense_layers": (1,)}), shape, None, Budget.parse("20%")
    )
    for t, out in decoded(method, qkv, ARGS, layer=1):
        k, v = (x[:, :, : t + 1] for x in qkv[1:])
        expected = dense_decode(qkv[0][:, :, t : t + 1], k, v, ARGS, (0, 9))[:, :, 0]
        torch.testing.assert_close(out, expected)


def test_the_plan_counts_the_dense_layers():
    config = architecture(num_hidden_layers=8)
    model = {"name": "m", "weights": "random", "config_json": config}
    raw = {"model": model, "method": {"name": "magicpig"}, "budget": "10%"}
    for dense, own in (([], 2), ([0, 4], 4)):
        task = {"name": "niah", "length": 2048}
        summary, _ = plan_summary(
            parse_run({**raw, "task": task, "engine": {"dense_layers": dense}})
        )
        assert f"{own} of 8 layers are dense" in summary.attended


@pytest.mark.parametrize(("place", "manager"), STORES)
def test_every_store_gives_the_same_output(place, manager):
    qkv = tensors("clustered", (4, 2), 230, batch=2)
    shape = shape_of(*qkv[:2], 200, (0, 9))
    found = []
    for options in ({}, {"placement": place, "cache": manager, "cache_frac": 0.2}):
        method = MagicPig(MagicPigConfig(page_tokens=4, **SMALL, **options), shape)
        found.append(torch.stack([out for _, out in decoded(method, qkv, ARGS)]))
        assert method.allocated() == MagicPig.plan(method.config, shape)
    torch.testing.assert_close(found[1], found[0], atol=2e-6, rtol=1e-5)


def test_a_step_reads_the_buckets_of_its_query():
    qkv = tensors("random", (4, 2), 205, batch=2)
    shape, probe = shape_of(*qkv[:2], 200, (0, 40)), CountingProbe()
    method = MagicPig(MagicPigConfig(**SMALL), shape, probe)
    entries = attended = 0
    for t, _ in decoded(method, qkv, ARGS):
        for row, head in itertools.product(range(2), range(4)):
            free = slice(shape.pad_tokens[row] + 4, 192)
            k = qkv[1][row, head // 2, free]
            plane = method.index.plane_LGDC[0, head // 2]
            count = collisions(qkv[0][row, head, t], k - k.mean(0), plane, 4)
            entries += int(count.sum())
            attended += int((count >= 2).sum()) + 12 + t - 199
    assert probe.by_layer("index")[0] == 4 * entries + 5 * 2 * 4 * 12 * 8
    assert probe.by_layer("kv")[0] == attended * 2 * 8 * 4
    assert probe.by_layer("attended")[0] == pytest.approx(attended / 8)


def test_bad_options_are_one_line():
    shape = shape_of(*tensors("random", (4, 2), 90)[:2], 80)
    with pytest.raises(ValueError, match="static zone alone takes 68 .*method.local_tokens"):
        MagicPig.plan(MagicPigConfig(), shape, Budget.parse("60tok"))
    with pytest.raises(ValueError, match="method: min_collisions=9 .* use at most method.tables=8"):
        parse(MagicPigConfig, {"min_collisions": 9, "tables": 8}, "method")
