"""RetroInfer's decode against a loop over tokens: zones, estimates and edges."""

from __future__ import annotations

import math

import pytest
import torch
from retrobench_kernels.codes import decode
from retrobench_methods.retroinfer import RetroInfer, RetroInferConfig

from retrobench.core.budget import Budget
from retrobench.engine.attention.exact import dense_decode
from tests.support import greedy_logits, kv_shape, open_on, random_ids

from .retroinfer_run import Run, make_shape


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


def all_values(index, pool, i, g):
    """Sum of the values of a head's clusters."""
    spans = zip(index.first_LBGC[i, 0, g].tolist(), index.size_LBGC[i, 0, g].tolist(), strict=True)
    return sum(pool.v_BGSD[0, g, first : first + size].double().sum(0) for first, size in spans)


def reference(run, i, query, tail=False, second=False, int4=False):
    """Numerator and denominator token by token, cluster by cluster, from the sets of the method."""
    method, q = run.method, query[0, :, 0].double()
    index, buffer = method.index, method.store
    zones = run.select(i, query)
    centroids = decode(index.centroids.read(i))[0].double()
    sizes_GC = index.size_LBGC[i, 0].double()
    if index.values is not None:
        means = decode(index.values.read(i))[0].double()
        if not index.values.coded:
            means = means / sizes_GC.clamp_min(1)[..., None]
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
        tokens, mass = 0, []
        for c in torch.nonzero(index.size_LBGC[i, 0, g])[:, 0].tolist():
            first, size = int(index.first_LBGC[i, 0, g, c]), int(index.size_LBGC[i, 0, g, c])
            k = pool.k_BGSD[0, g, first : first + size].double()
            v = pool.v_BGSD[0, g, first : first + size].double()
            if c in retrieved:
                logit = k @ q[head] * run.args.scale
                terms += [(float(x), 1, value) for x, value in zip(logit, v, strict=True)]
                continue
            logit = float(centroids[g, c] @ q[head]) * run.args.scale
            if second:
                form = q[head] @ index.spread.covariance[i, 0, g].double() @ q[head]
                kappa = float(form * index.spread.scale[i, 0, g, c].double()) * run.args.scale**2
                limit = 2 * math.log(size)
                gain = kappa / 2 if kappa <= limit else math.sqrt(kappa * limit) - limit / 2
                logit += max(gain, 0)
            if int4:
                terms.append((logit, size, index.means.read(i)[0, g, c].double()))
            elif c in estimated:
                terms.append((logit, size, means[g, c]))
            elif tail:
                tokens += size
                mass.append((logit, size))
        if mass:
            named = [c for c in {*retrieved, *estimated} if c >= 0]
            read = sum(sizes_GC[g, c] * means[g, c] for c in named)
            mean = (all_values(index, pool, i, g) - read) / tokens
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
        {"estimation_frac": 0.0, "tail": True},
        {"index_codec": "int4"},
        {"index_codec": "int8", "weigh_sizes": True},
        {"index_codec": "int4", "weigh_sizes": True, "tail": True},
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


def test_options_that_contradict_each_other_are_refused():
    shape = make_shape(300, 0)
    with pytest.raises(ValueError, match="method.tail=false"):
        RetroInfer.plan(RetroInferConfig(tail=True, int4_values=True), shape)
    with pytest.raises(ValueError, match="method.int4_values=false"):
        RetroInfer.plan(RetroInferConfig(index_codec="int8", int4_values=True), shape)
    with pytest.raises(ValueError, match="cache=host"):
        RetroInfer.plan(RetroInferConfig(cache="device", eviction="lfu"), shape)
    for option in ({"overlap": True}, {"prefetch_frac": 0.5}, {"async_update": True}):
        with pytest.raises(ValueError, match="cache=host or device"):
            RetroInfer.plan(RetroInferConfig(**option), shape)
        if "async_update" not in option:
            both = RetroInferConfig(cache="host", async_update=True, **option)
            with pytest.raises(ValueError, match="method.async_update=false"):
                RetroInfer.plan(both, shape)


def test_memory_of_a_long_session_is_the_cache_once_and_a_little():
    """Llama-3.1-8B at 128K on a CPU: index and steady zone within 15% of the KV cache."""
    shape = kv_shape(
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


FINER = {"index_codec": "int4", "weigh_sizes": True, "tail": True}


@pytest.mark.parametrize("options", [{}, {"tail": True}, {"index_codec": "int8"}, FINER])
def test_a_prepared_step_is_the_step_in_parts(options):
    pads = (0, 250)  # the last row has no cluster at first
    runs = [Run(new=80, pads=pads, softcap=8.0, **options) for _ in "12"]
    assert runs[0].method.prepared.possible
    runs[1].method.prepared.possible = False
    for n in range(300, 380):  # over two updates
        query = torch.randn(2, 4, 1, 16)
        ours, parts = (run.step(n, query) for run in runs)
        torch.testing.assert_close(ours, parts, atol=1e-6, rtol=1e-5)
    assert runs[0].method.prepared.steps and not runs[1].method.prepared.steps
    rows = [run.row() for run in runs]
    for name in ("attended_tokens", "estimated_tokens", "bytes_per_step", "decode_calls"):
        assert rows[0][name] == rows[1][name]


def test_the_end_of_a_prompt_may_form_many_segments(tiny_llama):
    """`protocol=decode_tail`: more tokens are decoded than a plan without the tail has room for."""
    answers = []
    for name in ("full", "retroinfer"):
        options = {"retrieval_frac": 1.0, "update_tokens": 64} if name == "retroinfer" else {}
        prompts = [random_ids(900), random_ids(850, 1)]
        session = open_on(tiny_llama, name, prompts, options, tail_tokens=500)
        with torch.inference_mode():
            for token in range(session.length, 900):
                session.feed(session.ids_BS[:, token : token + 1])
        answers.append(greedy_logits(session, 4))
    assert session.methods[0].updates > 8 * len(session.methods[0].shape.layers)
    torch.testing.assert_close(answers[1], answers[0], atol=2e-5, rtol=1e-4)
