"""A step that a CUDA graph can hold answers as the ordinary step, through index updates."""

from __future__ import annotations

import pytest
import torch
from transformers import MistralConfig, Qwen2Config

from retrobench.engine.generation import Decoding
from tests.support import greedy_logits, make_calibrations, open_on, random_ids

STEPS = 40
OPTIONS = {
    "retrieval_frac": 0.2,
    "update_tokens": 16,
    "local_tokens": 8,
    "kmeans_iterations": 3,
    "segment_tokens": 128,
    "page_tokens": 4,
    "placement": "cpu",
}
CASES = {
    "full": ("full", {}),
    "no cache": ("retroinfer", {**OPTIONS, "cache": "none"}),
    "all layers at once": ("retroinfer", {**OPTIONS, "cache": "device", "stagger_updates": False}),
    "better estimates": (
        "retroinfer",
        {**OPTIONS, "cache": "device", "tail": True, "second_order": True},
    ),
    "4 bits": ("retroinfer", {**OPTIONS, "cache": "none", "int4_values": True}),
    "adaptive": ("retroinfer", {**OPTIONS, "cache": "device", "error_tolerance": 0.5}),
}
LENGTHS = {"long": (300, 283), "one short": (300, 20), "below a segment": (20, 12)}


@pytest.mark.parametrize("lengths", LENGTHS)
@pytest.mark.parametrize("case", CASES)
def test_a_graph_answers_as_eager_steps(case, lengths, tiny_llama):
    name, options = CASES[case]
    prompts = [random_ids(n, n) for n in LENGTHS[lengths]]
    found = {}
    for executor in ("eager", "graph"):
        session = open_on(
            tiny_llama, name, prompts, options, new_tokens=STEPS + 1, executor=executor
        )
        assert session.executor.name == executor
        logits = greedy_logits(session, STEPS)
        found[executor] = logits, session.probe.row(), session.method.stats()
        assert session.allocated() == type(session.method).plan(
            session.method.config, session.shape
        )
        session.close()
    (eager, counted, stats), (graph, again, graph_stats) = found["eager"], found["graph"]
    torch.testing.assert_close(graph, eager, atol=2e-4, rtol=2e-4)
    assert torch.equal(graph.argmax(-1), eager.argmax(-1))
    assert again["decode_calls"] == counted["decode_calls"]
    for field in ("attended_tokens", "estimated_tokens", "bytes_per_step"):
        expected = counted[field] if isinstance(counted[field], float) else counted[field]["kv"]
        got = again[field] if isinstance(again[field], float) else again[field]["kv"]
        assert got == pytest.approx(expected, rel=1e-6)
    if name == "retroinfer":
        assert graph_stats["index_updates"] == stats["index_updates"]
    if again["hit_ratio"] is not None:
        assert again["hit_ratio"] == pytest.approx(counted["hit_ratio"], abs=1e-6)
        assert again["pages_per_step"] == counted["pages_per_step"]
        assert again["bytes_per_step"]["h2d"] == counted["bytes_per_step"]["h2d"]


def test_surplus_steps_change_no_answer(tiny_llama):
    prompts = [random_ids(60), random_ids(50, 1)]

    def answers(every, executor, stop=None, ends=frozenset()):
        session = open_on(tiny_llama, "full", prompts, new_tokens=20, executor=executor)
        decoding = Decoding(max_new_tokens=20, check_every=every)
        result = session.generate(decoding, ends, stop)
        session.close()
        return result.token_ids, result.stop_reasons, result.decode_steps

    whole, _, _ = answers(1, "eager")
    ends = frozenset({whole[0][6]})
    expected = answers(1, "eager", ends=ends)
    for executor in ("eager", "graph"):
        got = answers(8, executor, ends=ends)
        assert got[:2] == expected[:2] and got[2] >= expected[2]
        stopped = answers(4, executor, stop=lambda ids: len(ids) == 5)
        assert [len(ids) for ids in stopped[0]] == [5, 5]
        assert stopped[1] == ["stop_string"] * 2


def test_what_a_graph_cannot_hold_is_refused(tiny_llama, model_factory, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    make_calibrations(tiny_llama)
    cases = [
        ("retroinfer", {**OPTIONS, "cache": "host"}, "method.cache=host"),
        ("retroinfer", {**OPTIONS, "cache": "device", "overlap": True}, "method.overlap=false"),
        ("retroinfer", {**OPTIONS, "cache": "device", "async_update": True}, "async_update=false"),
        ("quest", {}, "method=quest needs the host"),
        ("infinigen", {}, "method=infinigen needs the host"),
    ]
    for name, options, words in cases:
        with pytest.raises(ValueError, match=f"engine.executor=graph: .*{words}"):
            open_on(tiny_llama, name, [random_ids(300)], options, executor="graph")
        chosen = open_on(tiny_llama, name, [random_ids(300)], options, executor="auto")
        assert chosen.executor.name == "eager"
    sliding = model_factory(
        Qwen2Config, sliding_window=8, use_sliding_window=True, max_window_layers=1
    )
    with pytest.raises(ValueError, match="sliding-window"):
        open_on(sliding, "full", [random_ids(30)], executor="graph")
    with pytest.raises(ValueError, match="no full-attention layer"):
        open_on(model_factory(MistralConfig, sliding_window=8), "full", [random_ids(30)])
