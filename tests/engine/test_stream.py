"""Prefill that streams: the answers of a whole prefill, and two layers of the prompt at most."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import Qwen2Config

from retrobench.cli import app as cli
from retrobench.core.method import PromptLayer
from retrobench.core.registry import method_class
from retrobench.core.shapes import Footprint
from retrobench.core.spec import parse
from retrobench.engine import hf
from retrobench.engine.overlap import waiting_bytes
from retrobench.engine.prefill import prefill
from retrobench.engine.session import Session, built_session
from retrobench.engine.stream import streamed_prompt
from retrobench.store.results import ResultStore
from tests.e2e import runs
from tests.support import greedy_logits, kv_shape, open_on, random_ids, ticks

SMALL = {"update_tokens": 16, "tokens_per_cluster": 8, "kmeans_iterations": 2}
METHODS = [
    ("full", {}),
    ("retroinfer", SMALL),
    ("retroinfer", {**SMALL, "cache": "device", "page_tokens": 4}),
    ("snapkv", {}),  # needs queries
    ("shadowkv", {}),  # needs rotary factors
]
WINDOWS = {"sliding_window": 16, "use_sliding_window": True, "max_window_layers": 1}


def streamed(model, name, prompts, options, **settings):
    kind = method_class(name)
    config = parse(kind.Config, options, "method")
    prompt = streamed_prompt(
        model, prompts, clock=ticks(), needs=kind.needs_of(config), room=6, **settings
    )
    return built_session(model, kind, config, prompt, max_new_tokens=6, clock=ticks())


@pytest.mark.parametrize(("name", "options"), METHODS, ids=str)
def test_a_streamed_session_answers_as_another(name, options, tiny_llama):
    prompts = [random_ids(120), random_ids(111, 1)]
    hf.attach(tiny_llama)
    session = streamed(tiny_llama, name, prompts, options, chunk_tokens=16)
    assert session.prompt.origin == "streamed" and not session.prompt.layers
    alone = open_on(tiny_llama, name, prompts, options, new_tokens=6)
    assert session.allocated() == alone.allocated()
    got, expected = greedy_logits(session, 6), greedy_logits(alone, 6)
    torch.testing.assert_close(got, expected, atol=1e-4, rtol=1e-4)
    session.close()


def test_layers_that_the_model_keeps_and_tokens_left_to_decode(model_factory):
    model = model_factory(Qwen2Config, **WINDOWS)
    hf.attach(model)
    found = []
    for tail in (0, 5):
        session = streamed(model, "full", [random_ids(60)], {}, tail_tokens=tail)
        session.feed(session.ids_BS[:, session.length :])
        found.append(session.logits)
    torch.testing.assert_close(found[0], found[1], atol=1e-4, rtol=1e-4)


def test_one_layer_is_built_while_the_next_computes(tiny_llama, monkeypatch):
    """Never more than two layers of the prompt wait, and the method's errors come out."""
    hf.attach(tiny_llama)
    alive, most = set(), []
    build, forward = Session._build_layer, hf.attention

    def watched(self, layer, part):
        build(self, layer, part)
        alive.discard(layer)

    def attention(module, *args, **kwargs):
        alive.add(module.layer_idx)
        most.append(len(alive))
        return forward(module, *args, **kwargs)

    monkeypatch.setattr(Session, "_build_layer", watched)
    monkeypatch.setitem(hf.AttentionInterface._global_mapping, hf.NAME, attention)
    streamed(tiny_llama, "full", [random_ids(50)], {})
    assert max(most) <= 2 and len(most) == 3

    def broken(self, layer, part):
        raise MemoryError(f"layer {layer}")

    monkeypatch.setattr(Session, "_build_layer", broken)
    with pytest.raises(MemoryError, match="layer 0"):
        streamed(tiny_llama, "full", [random_ids(50)], {})


def test_feed_forward_modules_take_pieces(tiny_llama):
    hf.attach(tiny_llama)
    seen = []
    hooks = [
        layer.mlp.gate_proj.register_forward_hook(lambda m, x, y: seen.append(x[0].shape[1]))
        for layer in tiny_llama.model.layers
    ]
    parts = {}
    whole = prefill(tiny_llama, [random_ids(50)], clock=ticks())
    seen.clear()
    made = prefill(
        tiny_llama, [random_ids(50)], clock=ticks(), chunk_tokens=20, on_layer=parts.__setitem__
    )
    for hook in hooks:
        hook.remove()
    assert seen == [20, 20, 10] * 3 and "forward" not in vars(tiny_llama.model.layers[0].mlp)
    torch.testing.assert_close(made.logits_BV, whole.logits_BV, atol=1e-5, rtol=1e-5)
    assert all(isinstance(part, PromptLayer) and part.memory is None for part in parts.values())


def test_a_run_streams_where_a_method_is_alone(tmp_path):
    options = {"task": {"name": "niah", "length": 512, "samples": 1, "depths": 1}, "budget": "40%"}
    streaming = {"prefill_stream": True, "chunk_tokens": 64}
    found = []
    for place, engine in (("one", streaming), ("other", {})):
        job = {**options, "method": {"name": "snapkv"}, "engine": engine}
        outcome = cli.run_job(runs.config(tmp_path / place, **job))
        (row,) = ResultStore(tmp_path / place).read(outcome["key"]).rows.values()
        assert row["status"] == "ok", row
        found.append(row)
    assert found[0]["prefill_from"] == "streamed" and "prefill_from" not in found[1]
    assert found[0]["prediction"] == found[1]["prediction"]
    for row in found:  # times of a streamed prompt are known when it has run
        assert row["prefill_tokens_per_s"] == row["prompt_tokens"] / row["prefill_s"]
        assert row["prefill_attention"] == "split"


def test_the_plan_counts_what_waits():
    shape = kv_shape(layers=tuple(range(10)), prompt_tokens=100, max_tokens=100, device="cuda")
    layer = shape.layer_token_bytes * 100
    kept = Footprint(device=10 * layer)
    assert waiting_bytes(shape, kept, False) == 0  # full attention keeps the prompt's memory
    assert waiting_bytes(shape, Footprint(device=layer, pinned=10 * layer), False) == 10 * layer
    assert waiting_bytes(shape, Footprint(device=12 * layer), False) == layer
    assert waiting_bytes(shape, Footprint(device=layer), True) == 2 * layer


def test_a_million_tokens_stream_to_pinned_memory():
    """Llama-3.1-8B: device bytes beside 15 GiB of weights, host bytes."""
    shape = kv_shape(
        layers=tuple(range(32)), num_heads=32, num_kv_heads=8, head_dim=128, dtype="bfloat16",
        prompt_tokens=2**20, max_tokens=2**20 + 1024, device="cuda",
    )  # fmt: skip
    kind = method_class("retroinfer")
    held = kind.plan(parse(kind.Config, {"placement": "pinned"}, "method"), shape)
    whole = shape.kv_bytes_per_token * shape.max_tokens
    assert held.pinned <= 1.05 * whole
    assert held.device + waiting_bytes(shape, held, True) < 32 * 2**30
    assert held.device + waiting_bytes(shape, held, False) > 128 * 2**30


PEAK = """
import re, torch
from transformers import LlamaConfig, LlamaForCausalLM
from retrobench.core.budget import Budget
from retrobench.core.registry import method_class
from retrobench.core.spec import parse
from retrobench.engine import hf
from retrobench.engine.prefill import prefill
from retrobench.engine.session import built_session
from retrobench.engine.stream import streamed_prompt
torch.set_num_threads(1)
kind = method_class("snapkv")
config = parse(kind.Config, {}, "method")
ids = torch.randint(3, 60, (768,)).tolist()
for make, layers in ((prefill, 1), (streamed_prompt, 4), (streamed_prompt, 16), (prefill, 16)):
    model = LlamaForCausalLM(LlamaConfig(
        hidden_size=16, intermediate_size=16, num_hidden_layers=layers, num_attention_heads=16,
        num_key_value_heads=16, head_dim=64, vocab_size=64)).eval()
    hf.attach(model)
    prompt = make(model, [ids], clock=float, needs=kind.needs_of(config), room=4)
    session = built_session(model, kind, config, prompt, max_new_tokens=4, clock=float,
                            budget=Budget.parse("48tok"))
    kept = session.allocated().total + sum(x.nbytes for x in model.parameters())
    session.close()
    peak = re.search(r"VmHWM:\\s+(\\d+)", open("/proc/self/status").read())[1]  # of this process
    print(1024 * int(peak) - kept)
"""


@pytest.mark.slow
def test_resident_memory_does_not_grow_with_the_layers():
    """The peak of a process of its own; each run begins where the peak of the one before is."""
    if not Path("/proc/self/status").exists():
        pytest.skip("needs /proc")
    # freed memory goes back at once, so that the peak is what was in use
    given_back = {"MALLOC_ARENA_MAX": "1", "MALLOC_MMAP_THRESHOLD_": "65536"}
    given_back |= {"MALLOC_TRIM_THRESHOLD_": "65536"}
    done = subprocess.run(
        [sys.executable, "-c", PEAK],
        capture_output=True, text=True, check=True, env={**os.environ, **given_back},
    )  # fmt: skip
    _, few, many, whole = map(int, done.stdout.split())  # less what method and model keep
    layer = 2 * 16 * 64 * 4 * 768  # bytes of its keys and values
    assert many - few < 3 * layer, (many - few) / layer
    assert whole - many > 8 * layer, (whole - many) / layer
