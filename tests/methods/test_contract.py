"""What every registered method must keep, on a tiny model."""

from __future__ import annotations

from collections import Counter

import pytest
import torch

from retrobench.core.registry import method_names
from retrobench.engine.generation import Decoding
from tests.support import (
    greedy_logits,
    make_calibrations,
    open_on,
    random_ids,
    skip_without_kvpress,
)

METHODS = method_names()
LENGTH, STEPS = 1200, 6
# Some leave the first layers dense by default; the tiny model has only three
OPTIONS = {"quest": {"dense_layers": []}, "infinigen": {"dense_layers": [0]}}
OPTIONS["magicpig"] = {"dense_layers": []}
EVICTING = ("snapkv", "adakv", "pyramidkv", "kvpress")
# Without a budget these keep more than the prompts of these tests have
OPTIONS |= {name: {"capacity_tokens": 300} for name in EVICTING}
# Its static zone of 640 tokens is made for contexts of 100K
# Heads of a random model are hardly stable or alike; half of them and more are pivots
OPTIONS["heterocache"] = {"full_heads": "top", "similar": 0.2, "stable": 0.2}
OPTIONS["retrieval_attention"] = {"sink_tokens": 4, "local_tokens": 64}


@pytest.fixture(autouse=True)
def installed(request):
    """Packages that a method bridges to are not part of the project's own."""
    params = getattr(request.node, "callspec", None)
    if params is not None and params.params.get("name") == "kvpress":
        skip_without_kvpress()


@pytest.fixture(autouse=True)
def calibrated(tiny_llama, tmp_path, monkeypatch):
    """Files that methods need beforehand, made of the tiny model in a fresh folder."""
    monkeypatch.chdir(tmp_path)
    make_calibrations(tiny_llama)


def prompt(length, seed=0):
    return random_ids(length, seed)


def run(model, name, prompts, budget=None):
    """Greedy logits of every step, and the session."""
    options = OPTIONS.get(name, {})
    session = open_on(
        model, name, prompts, options, new_tokens=STEPS, chunk_tokens=500, budget=budget
    )
    return greedy_logits(session, STEPS), session


@pytest.mark.parametrize("name", METHODS)
def test_budget_of_everything_equals_full(name, tiny_llama):
    prompts = [prompt(LENGTH)]
    expected, _ = run(tiny_llama, "full", prompts)
    got, _ = run(tiny_llama, name, prompts, None if name == "full" else "100%")
    torch.testing.assert_close(got, expected, atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("budget", ["100%", "5000tok"])
@pytest.mark.parametrize("name", METHODS)
def test_a_context_shorter_than_the_static_zone_is_attended_whole(name, budget, tiny_llama):
    prompts = [prompt(40)]
    expected, _ = run(tiny_llama, "full", prompts)
    got, _ = run(tiny_llama, name, prompts, None if name == "full" else budget)
    torch.testing.assert_close(got, expected, atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("name", METHODS)
def test_a_question_may_be_longer_than_what_is_prefilled(name, tiny_llama):
    prompts, tail, results = [prompt(150), prompt(130, 1)], 110, []
    whole = None if name == "full" else "100%"
    for method, budget in (("full", None), (name, whole), (name, None)):
        options = OPTIONS.get(method, {})
        session = open_on(tiny_llama, method, prompts, options, budget=budget, tail_tokens=tail)
        with torch.inference_mode():
            for token in range(session.length, 150):
                session.feed(session.ids_BS[:, token : token + 1])
        results.append(greedy_logits(session, STEPS))
    torch.testing.assert_close(results[1], results[0], atol=2e-5, rtol=1e-4)
    assert results[2].isfinite().all()


@pytest.mark.parametrize("tail", [0, 300, 1100])
@pytest.mark.parametrize("name", METHODS)
def test_plan_equals_what_is_allocated(name, tail, tiny_llama):
    """Also where the end of the prompt is decoded."""
    prompts, options = [prompt(LENGTH), prompt(1150)], OPTIONS.get(name, {})
    session = open_on(tiny_llama, name, prompts, options, new_tokens=STEPS, tail_tokens=tail)
    method = type(session.method)
    assert session.method.allocated() == method.plan(session.method.config, session.shape)
    assert session.method.allocated().total > 0


@pytest.mark.parametrize("name", METHODS)
def test_every_layer_counts_every_step(name, tiny_llama):
    _, session = run(tiny_llama, name, [prompt(LENGTH)])
    probe = session.method.probe
    assert probe.missing(session.layers, STEPS - 1) == []
    assert probe.row()["bytes_per_step"]["kv"] > 0
    assert 0 < probe.row()["attended_tokens"] <= LENGTH + STEPS


@pytest.mark.parametrize("name", METHODS)
def test_two_runs_are_equal(name, tiny_llama):
    first, _ = run(tiny_llama, name, [prompt(LENGTH)])
    second, _ = run(tiny_llama, name, [prompt(LENGTH)])
    assert torch.equal(first, second)


@pytest.mark.parametrize("name", [n for n in METHODS if n != "random"])
def test_rows_of_a_padded_batch_answer_as_if_alone(name, tiny_llama):
    prompts = [prompt(LENGTH), prompt(1150, seed=5)]
    together, session = run(tiny_llama, name, prompts)
    read = Counter()
    for row, alone in enumerate(prompts):
        expected, single = run(tiny_llama, name, [alone])
        read.update(single.method.probe.row()["bytes_per_step"])
        torch.testing.assert_close(together[0, row], expected[0, 0], atol=3e-5, rtol=1e-4)
        tokens = together[:, row].argmax(-1), expected[:, 0].argmax(-1)
        assert torch.equal(*tokens)
    found = session.method.probe.row()["bytes_per_step"]
    for kind in ("kv", "index"):  # padding is not read
        assert found.get(kind, 0) == pytest.approx(read[kind], rel=2e-3)


@pytest.mark.parametrize("name", METHODS)
def test_the_model_is_left_as_it_was(name, tiny_llama):
    before = {key: value.clone() for key, value in tiny_llama.state_dict().items()}
    _, session = run(tiny_llama, name, [prompt(LENGTH)])
    session.close()
    assert all(torch.equal(before[key], value) for key, value in tiny_llama.state_dict().items())
    assert not any(module._forward_pre_hooks for module in tiny_llama.modules())


@pytest.mark.parametrize("name", METHODS)
def test_close_frees_the_state(name, tiny_llama):
    _, session = run(tiny_llama, name, [prompt(LENGTH)])
    session.close()
    assert session.method.allocated().total == 0


@pytest.mark.parametrize("name", [n for n in METHODS if n not in {"full", "full_offload"}])
def test_a_small_budget_attends_what_it_says(name, tiny_llama):
    prompts = [prompt(LENGTH)]
    expected, _ = run(tiny_llama, "full", prompts)
    got, session = run(tiny_llama, name, prompts, "20%")
    assert not torch.allclose(got[1:], expected[1:], atol=1e-4)
    probe, dense = session.method.probe, OPTIONS.get(name, {}).get("dense_layers", [])
    layers = sorted(set(session.layers) - set(dense))
    attended = [probe.by_layer("attended")[layer] / (STEPS - 1) for layer in layers]
    if name in {"pyramidkv", "heterocache"}:  # their layers have budgets of their own
        attended = [sum(attended) / len(attended)]
    assert attended == pytest.approx([0.2 * LENGTH] * len(attended), rel=0.25)


def test_generation_end_to_end(tiny_llama):
    options = {"update_tokens": 32, "tokens_per_cluster": 8}
    session = open_on(tiny_llama, "retroinfer", [prompt(300)], options, new_tokens=150)
    result = session.generate(Decoding(max_new_tokens=150), frozenset())
    assert len(result.token_ids[0]) == 150
    assert result.method_stats["index_updates"] >= 3


@pytest.mark.parametrize("name", ["full", "full_offload", "quest", "oracle_topk", "random"])
def test_byte_counters_equal_the_formula(name, tiny_llama):
    """Bytes of K and V that a step reads, and of what the selection reads (docs/methods.md)."""
    _, session = run(tiny_llama, name, [prompt(LENGTH)], "20%")
    found = session.method.probe.row()["bytes_per_step"]
    vector, heads = 2 * 24 * 4, 3 * 2  # K and V of a token and KV head; layers x KV heads
    context = LENGTH + STEPS / 2
    attended = context if name in {"full", "full_offload"} else 0.2 * LENGTH
    if name == "quest":  # 15 pages, the newest one still filling
        attended = 14 * 16 + STEPS / 2
    assert found["kv"] == pytest.approx(heads * vector * attended, rel=0.05)
    index = {"quest": context / 16 * vector, "oracle_topk": context * vector / 2}.get(name, 0)
    assert found.get("index", 0) == pytest.approx(heads * index, rel=0.05)
    h2d = heads * vector * context if name == "full_offload" else 0
    assert found.get("h2d", 0) == pytest.approx(h2d, rel=0.05)
