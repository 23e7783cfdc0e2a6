"""RetrievalAttention against a plain reference, its counters, insertion, and bad options."""

from __future__ import annotations

import pytest
import torch
from retrobench_methods.retrieval_attention import RetrievalAttention

from retrobench.core.budget import Budget
from retrobench.core.method import AttentionArgs
from retrobench.core.spec import parse
from retrobench.engine.attention.key_search import SEARCHES, SearchConfig
from retrobench.engine.attention.key_search.base import nearest
from retrobench.engine.attention.key_search.graph import as_queries_see
from retrobench.measure.probe import CountingProbe
from tests.support import build, kv_shape

SINK, LOCAL, TOP, PROMPT, STEPS = 3, 8, 10, 150, 12
INDEXES = tuple(SEARCHES)
SMALL = {"degree": 6, "knn": 12, "build_beam": 20, "search_beam": 30, "keys_per_list": 12}
ARGS = AttentionArgs(scale=0.3)


def make_method(shape, index, budget=None, **options):
    static = {"sink_tokens": SINK, "local_tokens": LOCAL, "top_k": TOP}
    config = parse(RetrievalAttention.Config, {"index": index, **SMALL, **static, **options}, "m")
    return RetrievalAttention(config, shape, CountingProbe(), budget)


def make_kv(kind, shape, tokens):
    """Keys and values of every kind; queries point elsewhere than keys, as in models."""
    size = (shape.batch, shape.num_kv_heads, tokens, shape.head_dim)
    k, v = torch.randn(size), torch.randn(size)
    if kind == "clustered":
        k = 3 * torch.randn(size[:2] + (9, size[3]))[:, :, torch.arange(tokens) // 7 % 9] + k / 3
    if kind == "ties":
        k[:, :, ::2] = k[:, :, :1]
    if kind == "constant":
        k[:] = 1
    if kind == "outliers":
        k[:, :, ::13] *= 30
    q = torch.randn(shape.batch, shape.num_heads, tokens, shape.head_dim) - 1
    dtype = getattr(torch, shape.dtype)
    return q.to(dtype), k.to(dtype), v.to(dtype)


def reference(q_HD, k_GSD, v_GSD, pad, length, chosen_HR, insert=False):
    """Softmax over the static zone and each query head's chosen keys, in float64."""
    per_group, outputs = len(q_HD) // len(k_GSD), []
    last = (length if insert else PROMPT) - LOCAL
    for head, query in enumerate(q_HD.double()):
        keys, values = k_GSD[head // per_group].double(), v_GSD[head // per_group].double()
        static = [*range(pad, pad + SINK), *range(max(last, pad + SINK), length)]
        attended = sorted({*static, *(t for t in chosen_HR[head].tolist() if t >= 0)})
        weight = (keys[attended] @ query * ARGS.scale).softmax(-1)
        outputs.append(weight @ values[attended])
    return torch.stack(outputs)


def exact_best(q_HD, k_GSD, first, end):
    """Positions of each query head's TOP keys among those indexed."""
    keys = k_GSD[:, first:end].double().repeat_interleave(len(q_HD) // len(k_GSD), 0)
    product = (keys @ q_HD.double()[..., None])[..., 0]
    return product.topk(min(TOP, product.shape[-1])).indices + first


SHAPES = {
    "one_kv_head": {"num_heads": 4, "num_kv_heads": 1, "head_dim": 16},
    "nine_heads": {"num_heads": 9, "num_kv_heads": 3, "head_dim": 24},
    "padded": {"num_heads": 4, "num_kv_heads": 2, "head_dim": 16, "pad_tokens": (0, 31)},
    "bfloat16": {"num_heads": 4, "num_kv_heads": 2, "head_dim": 32, "dtype": "bfloat16"},
}


@pytest.mark.parametrize("insert", [False, True])
@pytest.mark.parametrize("case", SHAPES)
@pytest.mark.parametrize("kind", ["random", "clustered", "ties", "constant", "outliers"])
@pytest.mark.parametrize("index", INDEXES)
def test_output_is_the_softmax_over_static_zone_and_found_keys(index, kind, case, insert):
    torch.manual_seed(0)
    shape = kv_shape(prompt_tokens=PROMPT, max_tokens=PROMPT + STEPS, **SHAPES[case])
    q, k, v = make_kv(kind, shape, PROMPT + STEPS)
    method = make_method(shape, index, insert=insert)
    build(method, {0: tuple(x[:, :, :PROMPT] for x in (q, k, v))}, ARGS)
    for step in range(PROMPT, PROMPT + STEPS):
        new = (x[:, :, step : step + 1] for x in (q, k, v))
        out = method.decode(0, *new, ARGS)[:, :, 0]
        end = (step + 1 if insert else PROMPT) - LOCAL
        for row, pad in enumerate(shape.pad_tokens):
            found_HR = method.index.found_BHR[row]
            assert ((found_HR == -1) | ((found_HR >= pad + SINK) & (found_HR < end))).all()
            there = [[token for token in head if token >= 0] for head in found_HR.tolist()]
            assert all(0 < len(set(head)) == len(head) for head in there)
            if index == "flat" and kind in ("random", "clustered"):
                best_HR = exact_best(q[row, :, step], k[row], pad + SINK, end)
                assert torch.equal(found_HR.sort().values, best_HR.sort().values)
            expected = reference(q[row, :, step], k[row], v[row], pad, step + 1, found_HR, insert)
            tolerance = 1e-2 if shape.dtype == "bfloat16" else 1e-4
            torch.testing.assert_close(out[row].double(), expected, atol=tolerance, rtol=tolerance)
    joined = insert * (STEPS - LOCAL) * shape.batch * shape.layer_token_bytes
    assert method.probe.by_layer("d2h")[0] == STEPS * q[:, :, 0].nbytes + joined


@pytest.mark.parametrize("start", ["last", "central"])
@pytest.mark.parametrize("scope", ["query_head", "kv_head"])
@pytest.mark.parametrize("index", INDEXES)
def test_counters_equal_the_formula(index, scope, start):
    shape = kv_shape(prompt_tokens=PROMPT, max_tokens=PROMPT + STEPS, num_heads=6, head_dim=16)
    q, k, v = make_kv("random", shape, PROMPT + 1)
    method = make_method(shape, index, scope=scope, start=start, probe_frac=0.5)
    build(method, {0: tuple(x[:, :, :PROMPT] for x in (q, k, v))}, ARGS)
    method.decode(0, *(x[:, :, PROMPT:] for x in (q, k, v)), ARGS)
    static, vector, keys = SINK + LOCAL + 1, 16 * 4, PROMPT - SINK - LOCAL
    counts = {name: method.probe.by_layer(name)[0] for name in ("attended", "kv", "d2h", "h2d")}
    assert counts == {
        "attended": static + TOP,
        "kv": 2 * vector * (2 * static + 6 * TOP),
        "d2h": 6 * vector,
        "h2d": 6 * (16 + 1) * 4,
    }
    search, read = method.index.searches[0][0], method.probe.by_layer("index")[0]
    search.restart()
    found = search.search(q[0, :, PROMPT], TOP, method.config.effort(keys, TOP))
    assert read == found.scanned_H.sum() * vector + found.entries_H.sum() * 4
    if index == "flat":
        assert read == 6 * keys * vector
    if index == "ivf":
        lists = round(keys / SMALL["keys_per_list"])
        assert (found.scanned_H == found.entries_H + lists).all()
        assert (found.scanned_H < keys).all()
    assert method.stats()["scanned_frac"] == pytest.approx(found.scanned_H.sum() / (6 * keys))


@pytest.mark.parametrize("start", ["last", "central"])
@pytest.mark.parametrize("insert", [False, True])
@pytest.mark.parametrize("scope", ["query_head", "kv_head"])
@pytest.mark.parametrize("index", INDEXES)
@pytest.mark.parametrize("prompt_tokens", [PROMPT, SINK + LOCAL + 1, 5])
def test_plan_equals_what_is_allocated(index, scope, insert, start, prompt_tokens):
    pads = {"pad_tokens": (0, 2), "layers": (0, 3)}
    shape = kv_shape(prompt_tokens=prompt_tokens, max_tokens=prompt_tokens + 9, **pads)
    method = make_method(shape, index, scope=scope, insert=insert, start=start)
    q, k, v = make_kv("random", shape, prompt_tokens)
    build(method, {0: (q, k, v), 3: (q, k, v)}, ARGS)
    assert method.allocated() == RetrievalAttention.plan(method.config, shape)


@pytest.mark.parametrize("insert", [False, True])
@pytest.mark.parametrize("index", INDEXES)
@pytest.mark.parametrize("prompt_tokens", [60, 5])
def test_a_budget_of_everything_attends_everything(index, insert, prompt_tokens):
    shape = kv_shape(prompt_tokens=prompt_tokens, max_tokens=prompt_tokens + 30)
    q, k, v = make_kv("random", shape, prompt_tokens + 30)
    method = make_method(shape, index, Budget.parse("100%"), insert=insert)
    build(method, {0: tuple(x[:, :, :prompt_tokens] for x in (q, k, v))}, ARGS)
    for step in range(prompt_tokens, prompt_tokens + 30):
        out = method.decode(0, *(x[:, :, step : step + 1] for x in (q, k, v)), ARGS)
        keys, values = (x[0, :, : step + 1].repeat_interleave(2, 0) for x in (k, v))
        weight = (keys @ q[0, :, step, :, None] * ARGS.scale).softmax(1)
        torch.testing.assert_close(out[0, :, 0], (weight * values).sum(1), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("index", ["ivf", "keys", "roar"])
def test_inserted_keys_are_found(index):
    """A new key that is by far the best is found by its query, once it has left the window."""
    torch.manual_seed(1)
    shape = kv_shape(prompt_tokens=PROMPT, max_tokens=PROMPT + 2 * LOCAL)
    q, k, v = make_kv("random", shape, PROMPT + 2 * LOCAL)
    k[:, :, PROMPT] = 9.0
    q[:, :, -1] = 1.0
    method = make_method(shape, index, insert=True)
    build(method, {0: tuple(x[:, :, :PROMPT] for x in (q, k, v))}, ARGS)
    for step in range(PROMPT, PROMPT + 2 * LOCAL):
        method.decode(0, *(x[:, :, step : step + 1] for x in (q, k, v)), ARGS)
    assert (method.index.found_BHR[0, :, 0] == PROMPT).all()


def test_a_graph_of_queries_finds_more_for_queries_than_a_graph_of_keys():
    """Keys lie near a plane that queries do not point along: what the method is made for."""
    torch.manual_seed(0)
    tokens, dim, recall = 900, 32, {}
    k = torch.randn(1, tokens, dim)
    k[..., 8:] *= 0.25
    q = torch.randn(1, tokens + 40, dim)
    q[..., :8] *= 0.25
    best = nearest(q[0, tokens:], k[0], TOP)
    for index in ("keys", "roar"):
        config = SearchConfig(index=index, degree=6, knn=24, build_beam=24)
        search = SEARCHES[index](config, k, 1)
        search.build(k, q[:, :tokens], 0)
        found = [search.search(x[None], TOP, 24) for x in q[0, tokens:]]
        hits = [torch.isin(f.token_HR[0], b).sum() for f, b in zip(found, best, strict=True)]
        recall[index] = float(sum(hits)) / (40 * TOP)
    assert recall["roar"] > recall["keys"] + 0.1


def shifted(tokens=900, dim=32):
    """Keys and queries with large means, as models have them; queries drift slowly."""
    generator = torch.Generator().manual_seed(0)
    k = torch.randn(1, tokens, dim, generator=generator) + 4 * torch.randn(dim, generator=generator)
    walk = torch.randn(1, tokens + 40, dim, generator=generator).cumsum(1)
    q = walk / walk.norm(dim=-1, keepdim=True) * 4 + 3 * torch.randn(dim, generator=generator)
    return q, k


def recall_and_scans(q, k, effort, **options):
    tokens = k.shape[1]
    search = SEARCHES["roar"](SearchConfig(degree=6, knn=24, **options), k, 1)
    search.build(k, q[:, :tokens], 0)
    best = nearest(q[0, tokens:], k[0], TOP)
    found = [search.search(x[None], TOP, effort) for x in q[0, tokens:]]
    hits = [torch.isin(f.token_HR[0], b).sum() for f, b in zip(found, best, strict=True)]
    scanned = sum(int(f.scanned_H) for f in found)
    return float(sum(hits)) / (40 * TOP), scanned / (40 * tokens)


def test_keys_as_queries_see_them_make_a_better_graph():
    """With a common shift the best raw neighbours are the same few keys: most are never reached."""
    q, k = shifted()
    raw = recall_and_scans(q, k, 300, key_space="raw", start="central")
    seen = recall_and_scans(q, k, 100, start="central")
    assert seen[0] > raw[0] + 0.2


def test_a_search_that_starts_where_the_last_one_ended_needs_a_narrower_beam():
    q, k = shifted()
    central, last = (recall_and_scans(q, k, 4, start=start) for start in ("central", "last"))
    assert last[0] > central[0] + 0.1


def test_distances_of_keys_as_queries_see_them_are_expected_differences_of_products():
    """Before the length is made one: checked against sums over the queries."""
    generator = torch.Generator().manual_seed(0)
    k, q = (torch.randn(n, 6, generator=generator, dtype=torch.float64) for n in (5, 400))
    q = q * torch.tensor([3.0, 1, 1, 1, 0.5, 0.1]) + 2
    seen = as_queries_see(k, q).double()
    centred, beside = k - k.mean(0), q - q.mean(0)
    for a in range(5):
        for b in range(5):
            products = [beside @ centred[i] for i in (a, b)]
            lengths = [x.square().mean().sqrt() for x in products]
            expected = (products[0] * products[1]).mean() / lengths[0] / lengths[1]
            assert float(seen[a] @ seen[b]) == pytest.approx(float(expected), abs=0.02)


def test_earlier_searches_can_be_forgotten():
    q, k = shifted()
    search = SEARCHES["roar"](SearchConfig(degree=6, knn=24), k, 1)
    search.build(k, q[:, :900], 0)
    assert set(search.last_HN[0].tolist()) == set(nearest(q[0, 899:900], k[0], 24)[0].tolist())
    first = search.search(q[:, 900], TOP, 9)
    search.search(q[:, 930], TOP, 9)
    assert set(search.last_HN[0, :TOP].tolist()) >= {int(nearest(q[0, 930:931], k[0], 1))}
    search.restart()
    assert all(map(torch.equal, search.search(q[:, 900], TOP, 9), first))


def test_causal_training_queries_see_only_what_was_before_them():
    k, q = torch.randn(40, 8), torch.randn(45, 8)
    near = nearest(q, k, 6, torch.arange(45) - 5 + 1)
    for position, found in enumerate(near.tolist()):
        seen = [key for key in found if key >= 0]
        assert len(seen) == min(6, max(0, position - 5 + 1))
        assert all(key <= position - 5 for key in seen)


def test_lists_probed_to_the_last_find_the_exact_best():
    shape = kv_shape(prompt_tokens=PROMPT, max_tokens=PROMPT + 1, num_heads=6)
    q, k, _ = make_kv("random", shape, PROMPT)
    search = SEARCHES["ivf"](SearchConfig(index="ivf", keys_per_list=9), k[0], 6)
    search.build(k[0], q[0], 0)
    found = search.search(q[0, :, 0], TOP, PROMPT)
    expected = search.everything(q[0, :, 0], TOP)
    product, order = expected.product_HR.sort(-1, descending=True)
    assert torch.equal(found.token_HR, expected.token_HR.gather(-1, order))
    torch.testing.assert_close(found.product_HR, product)


def test_a_budget_below_the_static_zone_names_it():
    shape = kv_shape(prompt_tokens=1000, max_tokens=1010)
    with pytest.raises(ValueError, match=r"static zone alone takes 640 \(method.sink_tokens"):
        RetrievalAttention.plan(RetrievalAttention.Config(), shape, Budget.parse("50%"))


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("index", "hnsw", "Allowed: flat, ivf, keys, roar"),
        ("scope", "head", "Allowed: query_head, kv_head"),
        ("top_k", 0, "m.top_k must be in"),
        ("probe_frac", 1.5, "m.probe_frac is a fraction"),
    ],
)
def test_bad_options_are_named(option, value, message):
    with pytest.raises(ValueError, match=message.replace("(", r"\(")):
        parse(RetrievalAttention.Config, {option: value}, "m")
