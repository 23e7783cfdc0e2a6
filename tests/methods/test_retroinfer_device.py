"""The device-resident decode state gives what the method gives, through index updates."""

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


def device_steps(model, prompts, **placement):
    """Greedy logits of every step, decoded from full attention's prefill."""
    from retrobench_methods.retroinfer.config import RetroInferConfig
    from retrobench_methods.retroinfer.device import DeviceWave

    full = session(model, "full", {}, prompts)
    with torch.inference_mode():
        first = full.prefill(full.ids_BS.shape[1])
        wave = DeviceWave(parse(RetroInferConfig, OPTIONS, "method"), full.shape, **placement)
        for layer in full.shape.layers:
            wave.load(layer, full.method.store.keys(layer), full.method.store.values(layer))
        position = full.ids_BS.shape[1] - full.pad_B1
        graph = StepGraph(model, wave, first.argmax(-1, keepdim=True), position)
        found, updates = [first], 0
        for _ in range(STEPS):
            updates += wave.begin_step()
            found.append(graph.step().clone())
    full.close()
    return torch.stack(found), wave, updates


@pytest.mark.parametrize("placement", [{}, {"cache_slots": 9, "page_tokens": 4}])
def test_device_decode_equals_the_method(placement, tiny_llama):
    hf.attach(tiny_llama)
    generator = torch.Generator().manual_seed(3)
    prompts = [torch.randint(3, 101, (n,), generator=generator).tolist() for n in (300, 283)]
    got, wave, updates = device_steps(tiny_llama, prompts, **placement)
    assert updates == wave.updates == 2
    expected = session(tiny_llama, "retroinfer", OPTIONS, prompts)
    with torch.inference_mode():
        logits = expected.prefill(expected.ids_BS.shape[1])
        expected.seal()
        for step in range(STEPS + 1):
            torch.testing.assert_close(got[step], logits, atol=2e-4, rtol=2e-4)
            logits = expected.step(logits.argmax(-1, keepdim=True))
    expected.close()
    ratio = wave.hit_ratio()
    assert (ratio is None) == (not placement)
    assert ratio is None or 0 < ratio < 1


def test_short_prompts_and_sliding_windows_are_refused(tiny_llama, model_factory):
    from retrobench_methods.retroinfer.config import RetroInferConfig
    from retrobench_methods.retroinfer.device import DeviceWave
    from transformers import MistralConfig

    hf.attach(tiny_llama)
    short = session(tiny_llama, "full", {}, [[5] * 20]).shape
    with pytest.raises(ValueError, match="at least one segment; got 20 tokens"):
        DeviceWave(RetroInferConfig(), short)
    sliding = model_factory(MistralConfig, sliding_window=8)
    hf.attach(sliding)
    zero = torch.zeros(1, 1, dtype=torch.int64)
    with pytest.raises(ValueError, match="sliding-window|no full-attention layer"):
        StepGraph(sliding, None, zero, zero)
