"""Quest's pages equal a ten-line reference's, on random and on adversarial keys."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from retrobench_kernels.page_bounds import upper_bound
from retrobench_methods.quest import Quest, QuestConfig

from retrobench.core.budget import Budget
from retrobench.core.method import AttentionArgs
from retrobench.engine.attention.parts import attend
from retrobench.engine.generation import Decoding
from retrobench.tasks.prompt import PromptBuilder
from retrobench.tasks.ruler import RulerConfig, RulerTask
from tests.support import build, kv_shape, open_on, real_model

ARGS = AttentionArgs(scale=0.25)
PAGE = 4


def selected(method, layer, query, args):
    """Positions that a step would attend."""
    chosen = method.index.select(layer, query, method.store, args)
    return chosen.token_BGR


def make_keys(kind, length, generator):
    keys = torch.randn(1, 2, length, 8, generator=generator)
    if kind == "constant":
        return torch.ones_like(keys)
    if kind == "ties":
        return keys.round()
    if kind == "outliers":  # whole numbers: sums are exact in any order
        return keys.round() * (torch.rand(1, 2, length, 1, generator=generator) < 0.05) * 1e3
    if kind == "negative":
        return -keys.abs().ceil()
    if kind == "clustered":  # runs of like keys, as real ones are
        centre = 4 * torch.randn(1, 2, length // 6 + 1, 8, generator=generator)
        return (centre.repeat_interleave(6, 2)[:, :, :length] + keys / 4).half().float()
    return keys


def reference_pages(query_HD, keys_GSD, count, variant, size=PAGE):
    """Pages per KV head by the largest summed bounds, earlier pages first among equals."""
    chosen = []
    for g, keys in enumerate(keys_GSD):
        pages = keys.split(size)
        bounds = []
        for page in pages:
            low, high = page.amin(0), page.amax(0)
            group = query_HD.chunk(len(keys_GSD))[g].double()
            bounds.append(torch.maximum(group * low, group * high).sum().item())
        if variant == "kernel":
            bounds[-1] = float("inf")
        ranked = sorted(range(len(pages)), key=lambda p: (-round(bounds[p], 3), p))
        chosen.append(set(ranked[: max(count, 2 if variant == "kernel" else 3)]))
    return chosen


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    length=st.integers(30, 120),
    new=st.integers(1, 9),
    kind=st.sampled_from(["random", "constant", "ties", "outliers", "negative", "clustered"]),
    variant=st.sampled_from(["kernel", "accuracy"]),
)
def test_selected_pages_equal_the_reference(seed, length, new, kind, variant):
    generator = torch.Generator().manual_seed(seed)
    keys = make_keys(kind, length + new, generator)
    query = torch.randn(1, 4, 1, 8, generator=generator).round()
    shape = kv_shape(prompt_tokens=length, max_tokens=length + new)
    config = QuestConfig(page_size=PAGE, dense_layers=(), retrieval_frac=0.3, variant=variant)
    method = Quest(config, shape)
    prompt = keys[:, :, :length]
    build(method, {0: (query.expand(-1, -1, length, -1), prompt, prompt)})
    for i in range(length, length + new):
        method.decode(0, query, keys[:, :, i : i + 1], keys[:, :, i : i + 1], ARGS)
    tokens = selected(method, 0, query, ARGS)[0]
    expected = reference_pages(query[0, :, 0], keys[0], round(0.3 * length) // PAGE, variant)
    for head in range(2):
        got = tokens[head][tokens[head] >= 0]
        pages = set((got // PAGE).tolist())
        assert len(got) == len(set(got.tolist()))
        assert pages == expected[head]


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10**6), scale=st.floats(0.01, 100))
def test_the_bound_holds_for_every_key_of_the_page(seed, scale):
    generator = torch.Generator().manual_seed(seed)
    keys = scale * torch.randn(1, 2, 6, PAGE, 8, generator=generator)
    query = torch.randn(1, 4, 8, generator=generator)
    bound = upper_bound(query, keys.amin(3), keys.amax(3)).reshape(2, 2, 6)
    logit = torch.einsum("gnd,gcpd->gncp", query.reshape(2, 2, 8), keys[0])
    assert (logit.amax(-1) <= bound + 1e-4 * scale).all()


def test_query_heads_choose_for_themselves():
    shape = kv_shape(pad_tokens=(0, 5), max_tokens=66)
    generator = torch.Generator().manual_seed(0)
    config = QuestConfig(page_size=PAGE, dense_layers=(), scope="query_head")
    method = Quest(config, shape, budget=Budget.parse("40%"))
    keys = torch.randn(2, 2, 64, 8, generator=generator)
    build(method, {0: (torch.randn(2, 4, 64, 8), keys, keys)})
    query = torch.randn(2, 4, 1, 8, generator=generator)
    tokens = selected(method, 0, query, ARGS)
    assert tokens.shape[1] == 4
    assert not torch.equal(tokens[:, 0].sort(-1).values, tokens[:, 1].sort(-1).values)
    assert int(tokens[1][tokens[1] >= 0].min()) >= 5


def test_dense_layers_attend_everything():
    shape = kv_shape(layers=(0, 2), max_tokens=66)
    method = Quest(QuestConfig(), shape)
    keys = torch.randn(1, 2, 64, 8)
    build(method, dict.fromkeys((0, 2), (torch.randn(1, 4, 64, 8), keys, keys)))
    query = torch.randn(1, 4, 1, 8)
    dense = selected(method, 0, query, ARGS)
    sparse = selected(method, 2, query, ARGS)
    assert (dense >= 0).sum() == 2 * 64 and (sparse >= 0).sum() == pytest.approx(64, abs=32)


@pytest.mark.parametrize("cache", ["none", "host"])
def test_offloaded_pages_give_the_same_answer(cache):
    generator = torch.Generator().manual_seed(0)
    shape = kv_shape(pad_tokens=(0, 5), prompt_tokens=200, max_tokens=212)
    keys, values = torch.randn(2, 2, 2, 212, 8, generator=generator)
    queries = torch.randn(2, 4, 212, 8, generator=generator)
    outputs = []
    for options in ({}, {"placement": "cpu", "cache": cache, "cache_frac": 0.2}):
        config = QuestConfig(page_size=PAGE, dense_layers=(), retrieval_frac=0.1, **options)
        method = Quest(config, shape)
        build(method, {0: tuple(t[:, :, :200] for t in (queries, keys, values))})
        assert method.allocated() == Quest.plan(config, shape)
        steps = [
            method.decode(0, *(t[:, :, i : i + 1] for t in (queries, keys, values)), ARGS)
            for i in range(200, 212)
        ]
        outputs.append(torch.stack(steps))
    torch.testing.assert_close(outputs[0], outputs[1])


def test_pages_on_a_real_models_own_keys():
    """The keys and queries of a real prompt: every sparse layer and step agrees."""
    loaded = real_model()
    config = RulerConfig(tasks=("niah_multikey_2",), length=(600,), samples=1)
    builder = PromptBuilder(loaded.tokenizer)
    ids = builder.encode(next(iter(RulerTask(config).samples(builder)))).ids
    checked = []

    class Checked(Quest):
        def decode(self, layer, q_BHTD, k_BGTD, v_BGTD, args):
            out = super().decode(layer, q_BHTD, k_BGTD, v_BGTD, args)
            tokens = selected(self, layer, q_BHTD, args)[0]
            keys = self.store.keys(layer)[0].double()
            want = reference_pages(q_BHTD[0, :, 0], keys, len(ids) // 10 // 16, "kernel", 16)
            checked.extend(
                {int(t) // 16 for t in row if t >= 0} == want[g] for g, row in enumerate(tokens)
            )
            return out

    options = QuestConfig(dense_layers=())
    session = open_on(loaded.model, Checked, [ids], options, new_tokens=4, budget="10%")
    session.generate(Decoding(max_new_tokens=4), frozenset())
    session.close()
    assert len(checked) == len(session.layers) * session.shape.num_kv_heads * 3 and all(checked)


@pytest.mark.parametrize(("dtype", "softcap"), [("float32", None), ("bfloat16", 5.0)])
def test_pages_attended_in_place_equal_their_gathered_tokens(dtype, softcap, monkeypatch):
    """The fast path, with the machine's kernels and in plain torch, against select and attend."""
    generator = torch.Generator().manual_seed(3)
    shape = kv_shape(
        pad_tokens=(0, 9),
        layers=(0, 1),
        head_dim=64,
        prompt_tokens=150,
        max_tokens=170,
        dtype=dtype,
    )
    tensors = torch.randn(4, 2, 4, 170, 64, generator=generator).to(getattr(torch, dtype))
    query, keys, values = tensors[0], tensors[1, :, :2], tensors[2, :, :2]
    args = AttentionArgs(scale=0.125, softcap=softcap)
    config = QuestConfig(page_size=PAGE, dense_layers=(0,), retrieval_frac=0.2)
    method = Quest(config, shape)
    prompt = tuple(t[:, :, :150] for t in (query, keys, values))
    build(method, dict.fromkeys((0, 1), prompt), args)
    tolerance = 1e-5 if dtype == "float32" else 2e-2
    for n in range(150, 170):
        monkeypatch.setenv("RETROBENCH_KERNELS", ("auto", "naive")[n % 2])
        for layer in (0, 1):
            q, k, v = (t[:, :, n : n + 1] for t in (query, keys, values))
            got = method.decode(layer, q, k, v, args)
            token = selected(method, layer, q, args)
            gathered = method.store.gather(layer, token)
            expected = attend(q, *gathered, token >= 0, args)
            torch.testing.assert_close(got, expected, atol=tolerance, rtol=tolerance)
    assert (token >= 0).sum(-1).max() <= 32
