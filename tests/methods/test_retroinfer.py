"""RetroInfer's decode against a loop over tokens: zones, estimates, tiers and edges."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace

import pytest
import torch
from retrobench_methods.retroinfer import RetroInfer, RetroInferConfig
from retrobench_methods.retroinfer.adaptive import keep_within
from retrobench_methods.retroinfer.async_cache import next_ranked
from retrobench_methods.retroinfer.config import sizes
from retrobench_methods.retroinfer.estimation import Int4Values

from retrobench.core.budget import Budget
from retrobench.core.method import AttentionArgs
from retrobench.core.shapes import KVShape
from retrobench.engine.attention.exact import dense_decode
from retrobench.measure.probe import CountingProbe
from tests.support import build

SMALL = {"update_tokens": 32, "tokens_per_cluster": 8, "retrieval_frac": 0.1}
TIERS = list(itertools.product(("gpu", "pinned", "cpu"), ("none", "host", "device")))


def make_shape(prompt, new, pads=(0,), layers=(0, 3), dim=16, dtype="float32"):
    return KVShape(
        pad_tokens=pads,
        layers=layers,
        num_heads=4,
        num_kv_heads=2,
        head_dim=dim,
        prompt_tokens=prompt,
        max_tokens=prompt + new,
        dtype=dtype,
    )


class Run:
    """A method fed with sticky random tokens, so that clusters and hits mean something."""

    def __init__(self, prompt=300, new=0, pads=(0,), softcap=None, seed=0, budget=None, **options):
        torch.manual_seed(seed)
        self.args = AttentionArgs(scale=0.4, softcap=softcap)
        self.shape = make_shape(prompt, new, pads)
        self.probe = CountingProbe()
        config = RetroInferConfig(**{**SMALL, **options})
        self.method = RetroInfer(config, self.shape, self.probe, budget)
        size = (2, 2, self.shape.batch, 2, prompt + new, 16)
        topic = torch.randn(2, 2, self.shape.batch, 2, (prompt + new) // 8 + 1, 16)
        self.kv = topic.repeat_interleave(8, 4)[:, :, :, :, : prompt + new]
        self.kv = self.kv + 0.3 * torch.randn(size)
        self.q = topic[0, 0].repeat_interleave(2, 1) + 0.1
        layers = {
            layer: (None, *self.kv[i][..., :prompt, :]) for i, layer in enumerate(self.shape.layers)
        }
        build(self.method, layers, self.args)

    def step(self, n, query=None):
        """Outputs of both layers for token ``n``, stacked."""
        outputs = []
        self.method.begin_step()
        for i, layer in enumerate(self.shape.layers):
            q = self.q[:, :, (n // 4) % 9, None] if query is None else query
            outputs.append(self.method.decode(layer, q, *self.kv[i][..., n : n + 1, :], self.args))
        self.method.end_step()
        return torch.stack(outputs)

    def row(self):
        """What was counted, the cache's part included."""
        self.method.report_counts()
        return self.probe.row()

    def select(self, i, query):
        """The clusters that a step of layer number ``i`` would attend."""
        layer = self.shape.layers[i]
        return self.method.index.select(layer, query, self.method.store, self.args)


@pytest.mark.parametrize("softcap", [None, 3.0])
def test_every_tier_gives_the_same_output(softcap):
    steps, pads = range(300, 340), (0, 21)
    options = {"new": 40, "pads": pads, "softcap": softcap, "cache_frac": 0.1, "page_tokens": 4}
    expected = None
    for place, cache in TIERS if softcap is None else TIERS[:3]:
        run = Run(placement=place, cache=cache, **options)
        got = torch.stack([run.step(n) for n in steps])
        expected = got if expected is None else expected
        torch.testing.assert_close(got, expected, atol=1e-5, rtol=1e-4)
        row = run.row()
        assert (row["hit_ratio"] is None) == (cache == "none")
        if cache != "none":
            assert 0.2 < row["hit_ratio"] < 1 and row["bytes_per_step"]["h2d"] > 0
            assert row["pages_per_step"]["evictions"] > 0
            assert run.method.stats()["hit_ratio"] == pytest.approx(row["hit_ratio"])
        assert run.method.allocated() == RetroInfer.plan(run.method.config, run.shape)
        assert run.method.stats()["index_updates"] == 1


def test_host_and_device_managers_count_the_same():
    rows = []
    for cache in ("host", "device"):
        run = Run(new=40, cache=cache, cache_frac=0.08, page_tokens=4, cache_bound=True)
        for n in range(300, 340):
            run.step(n)
        rows.append(run.row())
        stats = run.method.stats()
        assert stats["hit_ratio"] < stats["best_hit_ratio"] <= 1
    assert rows[0] == rows[1]


@pytest.mark.parametrize("softcap", [None, 3.0])
def test_overlap_and_prefetch_change_no_output(softcap):
    options = {"new": 40, "pads": (0, 21), "cache_frac": 0.12, "page_tokens": 4}
    options["softcap"] = softcap
    extras = {"overlap": True}, {"prefetch_frac": 1.0}, {"overlap": True, "prefetch_frac": 1.0}
    plain = {cache: Run(cache=cache, **options) for cache in ("host", "device")}
    runs = {cache: [Run(cache=cache, **options, **extra) for extra in extras] for cache in plain}
    for n in range(300, 340):
        for cache, others in runs.items():
            expected = plain[cache].step(n)
            for run in others:
                torch.testing.assert_close(run.step(n), expected, atol=1e-5, rtol=1e-4)
    rows = {cache: [run.row() for run in found] for cache, found in runs.items()}
    assert rows["host"] == rows["device"]
    overlapped, ahead, both = rows["host"]
    asked = plain["host"].row()
    assert overlapped == asked and both == ahead
    pages = [
        sum(row["pages_per_step"][kind] for kind in ("hits", "misses")) for row in (asked, ahead)
    ]
    assert pages[0] == pytest.approx(pages[1], abs=0.21)  # rounded
    method = runs["device"][1].method
    copied = method.stats()["prefetched_pages"]
    assert copied > 0 and asked["hit_ratio"] != ahead["hit_ratio"]
    moved = ahead["bytes_per_step"]["h2d"] * 40  # of what was missed, and of what came ahead
    assert moved > copied * 4 * 2 * 16 * 4
    assert method.allocated() == RetroInfer.plan(method.config, method.shape)
    method.close()


def test_prefetch_takes_the_clusters_ranked_next():
    run = Run(new=1, cache="host", retrieval_frac=0.2, page_tokens=4, estimation_frac=0.3)
    query, index = torch.randn(1, 4, 1, 16), run.method.index
    zones, size_BGC = run.select(0, query), index.size_LBGC[0]
    wider = replace(run.method.config, retrieval_frac=0.3)
    more = sizes(wider, 300, None, 1).retrieved - index.retrieved[0][0]
    found = next_ranked(zones, size_BGC, more)
    index.retrieved_LB += more
    index.retrieved[0][0] += more
    both = torch.cat([zones.chosen_BGN, found], -1).sort(-1).values
    wide = run.select(0, query).chosen_BGN
    assert torch.equal(both, wide.sort(-1).values)
    everything = next_ranked(zones, size_BGC, 10**6)
    assert (everything >= 0).sum() == (size_BGC > 0).sum() - (zones.chosen_BGN >= 0).sum()


@pytest.mark.parametrize("extra", [{}, {"overlap": True, "prefetch_frac": 0.5}])
@pytest.mark.parametrize("cache", ["host", "device"])
def test_a_cache_smaller_than_one_retrieval_is_harmless(cache, extra):
    options = {"new": 20, "retrieval_frac": 0.5, "page_tokens": 8}
    plain = Run(**options)
    tiny = Run(cache=cache, cache_frac=0.001, **options, **extra)
    assert tiny.method.store.cache.size.slots == 1
    for n in range(300, 320):
        torch.testing.assert_close(tiny.step(n), plain.step(n), atol=1e-5, rtol=1e-4)


def test_moved_bytes_are_those_of_the_missed_tokens():
    run = Run(new=1, cache="host", page_tokens=4)
    run.step(300)
    index = run.method.index
    row = run.row()
    attended = sum(row["bytes_per_step"][kind] for kind in ("kv",))
    steady = 2 * 2 * 69 * 2 * 16 * 4
    assert row["bytes_per_step"]["h2d"] == attended - steady  # the first step misses everything
    assert row["attended_tokens"] == pytest.approx(attended / (2 * 2 * 2 * 16 * 4))
    assert index.retrieved[0] == [index.sizes[0].retrieved]


def test_short_contexts_are_dense_and_say_so():
    run = Run(prompt=80, new=60, update_tokens=64)
    for n in range(80, 110):
        query = torch.randn(1, 4, 1, 16)
        got = run.step(n, query)
        for i in range(2):
            k, v = run.kv[i][..., : n + 1, :]
            torch.testing.assert_close(got[i], dense_decode(query, k, v, run.args))
    assert run.method.stats()["dense"] is True
    for n in range(110, 140):
        run.step(n)
    assert run.method.stats()["dense"] is False  # the first segment came from generated tokens


def test_everything_retrieved_equals_full_attention_in_a_ragged_batch():
    pads = (0, 13, 250)  # the last row is too short for an index
    run = Run(new=50, pads=pads, budget=Budget.parse("100%"), cache="device", cache_frac=0.3)
    for n in range(300, 350):
        query = torch.randn(3, 4, 1, 16)
        got = run.step(n, query)
        for i in range(2):
            k, v = run.kv[i][..., : n + 1, :]
            expected = dense_decode(query, k, v, run.args, pads)
            torch.testing.assert_close(got[i], expected, atol=2e-5, rtol=1e-4)


def test_clusters_of_one_and_empty_clusters():
    ones = Run(tokens_per_cluster=1, estimation_frac=1.0, new=1)
    size = ones.method.index.size_LBGC
    assert (size == 1).any()
    query = torch.randn(1, 4, 1, 16)
    got = ones.step(300, query)
    for i in range(2):
        expected = dense_decode(query, *ones.kv[i][..., :301, :], ones.args)
        if (size[i] <= 1).all():  # an estimate of one token is the token
            torch.testing.assert_close(got[i], expected, atol=1e-5, rtol=1e-4)
    equal = Run(new=1, num_clusters=40, prompt=300)
    same = torch.ones(2, 232, 16)  # one direction: every cluster but one stays empty
    layout = equal.method.index.add_segment(0, 0, same, same)
    assert (layout.size_GC > 0).sum(-1).tolist() == [1, 1]


def reference(run, i, query, tail=False, second=False, int4=False):
    """Numerator and denominator token by token, cluster by cluster, from the sets of the method."""
    method, q = run.method, query[0, :, 0].double()
    index, buffer = method.index, method.store
    zones = run.select(i, query)
    pool = buffer.spans(run.shape.layers[i], zones).pool
    out = torch.zeros(4, 16, dtype=torch.float64)
    for head in range(4):
        g = head // 2
        retrieved = set(zones.chosen_BGN[0, g].tolist())
        estimated = set(zones.estimated_BGE[0, g].tolist()) - {-1}
        terms = []
        steady = buffer.steady(i)
        for k, v in zip(steady.k_BGWD[0, g], steady.v_BGWD[0, g], strict=True):
            terms.append((float(q[head] @ k.double()) * run.args.scale, 1, v.double()))
        left, mass = [], []
        for c in torch.nonzero(index.size_LBGC[i, 0, g])[:, 0].tolist():
            first, size = int(index.first_LBGC[i, 0, g, c]), int(index.size_LBGC[i, 0, g, c])
            k = pool.k_BGSD[0, g, first : first + size].double()
            v = pool.v_BGSD[0, g, first : first + size].double()
            if c in retrieved:
                logit = k @ q[head] * run.args.scale
                terms += [(float(x), 1, value) for x, value in zip(logit, v, strict=True)]
                continue
            logit = float(k.mean(0) @ q[head]) * run.args.scale
            if second:
                form = q[head] @ index.spread.covariance[i, 0, g].double() @ q[head]
                kappa = float(form * index.spread.scale[i, 0, g, c].double()) * run.args.scale**2
                limit = 2 * math.log(size)
                gain = kappa / 2 if kappa <= limit else math.sqrt(kappa * limit) - limit / 2
                logit += max(gain, 0)
            if int4:
                terms.append((logit, size, index.means.read(i)[0, g, c].double()))
            elif c in estimated:
                terms.append((logit, size, v.mean(0)))
            elif tail:
                left.append(v)
                mass.append((logit, size))
        if left:
            mean = torch.cat(left).mean(0)
            terms += [(logit, size, mean) for logit, size in mass]
        weight = torch.tensor([size * math.exp(logit) for logit, size, _ in terms])
        values = torch.stack([value for _, _, value in terms])
        out[head] = (weight.double() / weight.double().sum()) @ values
    return out


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"tail": True},
        {"second_order": True},
        {"tail": True, "second_order": True},
        {"int4_values": True},
        {"int4_values": True, "second_order": True},
        {"estimation_frac": 0.0},
        {"error_tolerance": 0.3, "retrieval_frac": 0.5},
        {"error_tolerance": 0.3, "retrieval_frac": 0.5, "int4_values": True, "second_order": True},
        {"error_tolerance": 0.3, "retrieval_frac": 0.5, "tail": True},
    ],
)
def test_output_equals_the_formula(options):
    run = Run(new=40, **options)
    bound = run.method.index.bound
    for n in range(300, 336):
        query = 2 * torch.randn(1, 4, 1, 16)
        norms = None if bound is None else bound.output_norm_LBH.clone()
        got = run.step(n, query)
    if bound is not None:  # the reference asks for the sets of this step once more
        bound.output_norm_LBH.copy_(norms)
    kinds = {"tail": "tail", "second": "second_order", "int4": "int4_values"}
    flags = {short: options.get(name, False) for short, name in kinds.items()}
    for i in range(2):
        expected = reference(run, i, query, **flags)
        torch.testing.assert_close(got[i][0, :, 0].double(), expected, atol=1e-4, rtol=1e-3)
    assert run.method.allocated() == RetroInfer.plan(run.method.config, run.shape)


def test_better_estimates_are_better_on_diffuse_attention():
    """Not a claim about models (docs/retroinfer.md measures those): the arithmetic helps here."""

    def error(**options):
        run, total = Run(prompt=1200, new=1, **options), 0.0
        query = 0.7 * torch.randn(1, 4, 1, 16)
        got = run.step(1200, query)
        for i in range(2):
            exact = dense_decode(query, *run.kv[i][..., :1201, :], run.args)
            total += float((got[i] - exact).norm() / exact.norm())
        return total

    plain, tail = error(), error(tail=True)
    assert tail < plain
    assert error(tail=True, second_order=True) < tail
    assert error(int4_values=True, second_order=True) < tail


def test_adaptive_budget_keeps_its_bound_and_retrieves_less():
    options = {"prompt": 1200, "new": 12, "retrieval_frac": 0.3}
    fixed = Run(**options)
    runs = {tolerance: Run(error_tolerance=tolerance, **options) for tolerance in (1e-6, 0.1, 1.0)}
    for n in range(1200, 1212):
        query = torch.randn(1, 4, 1, 16)
        expected = fixed.step(n, query)
        for tolerance, run in runs.items():
            got = run.step(n, query)
            gap = (got - expected).norm(dim=-1) / expected.norm(dim=-1)
            assert gap.max() < max(tolerance, 1e-4)
            if n == 1200:  # no output to compare with yet: nothing is left out
                torch.testing.assert_close(got, expected)
    attended = [fixed.row()["attended_tokens"]]
    attended += [run.row()["attended_tokens"] for run in runs.values()]
    assert attended == sorted(attended, reverse=True) and attended[-1] < 0.8 * attended[0]
    run = runs[1.0]
    assert run.method.allocated() == RetroInfer.plan(run.method.config, run.shape)


def test_what_is_left_out_stays_within_the_tolerance_of_every_head():
    torch.manual_seed(0)
    cluster = torch.arange(20).repeat(2, 3, 1).masked_fill(torch.rand(2, 3, 20) < 0.2, -1)
    error = torch.rand(2, 3, 4, 20) ** 4
    for tolerance in (0.0, 0.3, 2.0, 100.0):
        ordered, keep = keep_within(cluster, error, tolerance)
        assert torch.equal(ordered.sort(-1).values, cluster.sort(-1).values)
        for row, g in itertools.product(range(2), range(3)):
            kept = ordered[row, g][keep[row, g]].tolist()
            out = [c for c in ordered[row, g][~keep[row, g]].tolist() if c >= 0]
            assert keep[row, g, 0] and keep[row, g].tolist() == [True] * len(kept) + [False] * (
                20 - len(kept)
            )
            where = [cluster[row, g].tolist().index(c) for c in out]
            assert error[row, g][:, where].sum(-1).max() <= tolerance + 1e-5
            if len(kept) > 1:  # one more would be too many
                where.append(cluster[row, g].tolist().index(kept[-1]))
                assert error[row, g][:, where].sum(-1).max() > tolerance - 1e-5


def test_four_bits_round_to_the_nearest_of_fifteen_levels():
    torch.manual_seed(0)
    store, values = Int4Values((1, 1, 2, 9), 16, "cpu"), torch.randn(2, 9, 16)
    values[0, 3] = 0
    store.store((0, 0), values)
    step = values.abs().amax(-1, keepdim=True) / 7
    assert ((store.read(0)[0] - values).abs() <= step * 0.51 + 1e-6).all()


def test_options_that_contradict_each_other_are_refused():
    shape = make_shape(300, 0)
    with pytest.raises(ValueError, match="method.tail=false"):
        RetroInfer.plan(RetroInferConfig(tail=True, int4_values=True), shape)
    with pytest.raises(ValueError, match="cache=host"):
        RetroInfer.plan(RetroInferConfig(cache="device", eviction="lfu"), shape)
    for option in ({"overlap": True}, {"prefetch_frac": 0.5}):
        with pytest.raises(ValueError, match="cache=host or device"):
            RetroInfer.plan(RetroInferConfig(**option), shape)


def test_memory_of_a_long_session_is_the_cache_once_and_a_little():
    """Llama-3.1-8B at 128K on a CPU: index and steady zone within 15% of the KV cache."""
    shape = KVShape(
        pad_tokens=(0,),
        layers=tuple(range(32)),
        num_heads=32,
        num_kv_heads=8,
        head_dim=128,
        prompt_tokens=131072,
        max_tokens=131072 + 1024,
        dtype="bfloat16",
    )
    kv = shape.kv_bytes_per_token * shape.prompt_tokens
    plan = RetroInfer.plan(RetroInferConfig(), shape)
    assert plan.host < 1.01 * kv and plan.total < 1.1 * kv
    cached = RetroInfer.plan(RetroInferConfig(placement="pinned", cache="host"), shape)
    assert cached.device < 0.14 * kv  # index, 5% cache, steady zone
