"""Decode steps that a graph can hold give what the session gives, through index updates."""

from __future__ import annotations

import pytest
import torch

from retrobench.core.registry import method_class
from retrobench.core.spec import parse
from retrobench.engine import hf
from retrobench.engine.session import Session
from retrobench.engine.step_graph import StepGraph
from retrobench.measure.probe import CountingProbe

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


def session(model, name, options, prompts):
    method = method_class(name)
    return Session(
        model,
        method,
        parse(method.Config, options, "method"),
        prompts,
        probe=CountingProbe(),
        clock=lambda: 0.0,
        max_new_tokens=STEPS + 1,
    )


def graph_steps(model, prompts, options):
    """Logits of greedy steps through a step graph; the owner; layers' updates."""
    from retrobench_methods.retroinfer.device import GraphDecode

    run = session(model, "retroinfer", options, prompts)
    with torch.inference_mode():
        found = [run.prefill(run.ids_BS.shape[1])]
        run.seal()
        position = run.ids_BS.shape[1] - run.pad_B1
        owner = GraphDecode(run.method)
        graph = StepGraph(model, owner, found[0].argmax(-1, keepdim=True), position)
        updates = 0
        for _ in range(STEPS):
            updates += owner.begin_step()
            found.append(graph.step().clone())
    ratio, formed = owner.hit_ratio(), run.method.updates
    run.close()
    return found, ratio, updates, formed


@pytest.mark.parametrize(
    "options",
    [
        {"cache": "none"},
        {"cache": "device", "stagger_updates": False},
        {"cache": "device", "tail": True, "second_order": True},
        {"cache": "device", "error_tolerance": 0.5},
    ],
)
def test_graph_decode_equals_the_session(options, tiny_llama):
    hf.attach(tiny_llama)
    options = {**OPTIONS, **options}
    generator = torch.Generator().manual_seed(3)
    prompts = [torch.randint(3, 101, (n,), generator=generator).tolist() for n in (300, 283)]
    got, ratio, updates, formed = graph_steps(tiny_llama, prompts, options)
    expected = session(tiny_llama, "retroinfer", options, prompts)
    with torch.inference_mode():
        logits = expected.prefill(expected.ids_BS.shape[1])
        expected.seal()
        for step in range(STEPS + 1):
            torch.testing.assert_close(got[step], logits, atol=2e-4, rtol=2e-4)
            logits = expected.step(logits.argmax(-1, keepdim=True))
    layers = len(expected.shape.layers)
    assert formed == 2 * 2 * layers  # two updates of each row and layer
    assert updates == (2 if options.get("stagger_updates") is False else 2 * layers)
    if options["cache"] == "none":
        assert ratio is None
    else:
        expected.method.step()
        # one step more than the graph took, so not to the last digit
        assert ratio == pytest.approx(expected.method.buffer.cache.stats()["hit_ratio"], abs=0.05)
        assert 0 < ratio < 1
    expected.close()


def test_what_a_graph_cannot_hold_is_refused(tiny_llama, model_factory):
    from retrobench_methods.retroinfer.device import GraphDecode
    from transformers import MistralConfig

    hf.attach(tiny_llama)
    for options, length, said in (
        ({}, 20, "an index in every row"),
        ({"cache": "host"}, 300, "method.cache=host"),
        ({"cache": "device", "overlap": True}, 300, "method.overlap=false"),
    ):
        run = session(tiny_llama, "retroinfer", {**OPTIONS, **options}, [[5] * length])
        run.prefill(length)
        run.seal()
        with pytest.raises(ValueError, match=said):
            GraphDecode(run.method)
        run.close()
    sliding = model_factory(MistralConfig, sliding_window=8)
    hf.attach(sliding)
    zero = torch.zeros(1, 1, dtype=torch.int64)
    with pytest.raises(ValueError, match="sliding-window|no full-attention layer"):
        StepGraph(sliding, None, zero, zero)
