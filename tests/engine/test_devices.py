"""A model over two devices: state where the layer is, nothing computed across devices."""

from __future__ import annotations

import dataclasses
import time

import pytest
import torch
from retrobench_kernels import dispatch

from retrobench.core.method import AttentionArgs, PromptLayer
from retrobench.core.registry import method_class
from retrobench.core.spec import parse
from retrobench.engine import hf
from retrobench.engine.prefill import prefill
from retrobench.engine.session import Session
from retrobench.measure.clock import make_clock
from retrobench.measure.probe import CountingProbe
from tests.devices import FIRST, SECOND, Emulated, OnDevice, on_device
from tests.support import random_ids, ticks

ARGS = AttentionArgs(scale=0.25)
SMALL = {"update_tokens": 16, "tokens_per_cluster": 8, "kmeans_iterations": 2}
SMALL["stagger_updates"] = False  # staggered, each device counts its own layers
# keys and values in host memory beside the devices (the default beside a GPU), and on them
CASES = [
    ("full", {}, 3),
    ("retroinfer", {**SMALL, "cache": "host", "page_tokens": 4}, 3),
    ("retroinfer", {**SMALL, "cache": "device", "page_tokens": 4, "second_order": True}, 17),
    ("retroinfer", {**SMALL, "placement": "gpu"}, 3),
    ("quest", {}, 3),
    ("snapkv", {}, 3),
]


def test_two_devices_are_seen():
    with Emulated():
        one, other = torch.ones(3, device=FIRST), torch.ones(3, device=SECOND)
        assert (one + other.to(FIRST)).cpu().tolist() == [2.0] * 3
        with pytest.raises(RuntimeError, match="add.Tensor on two devices"):
            _ = one + other


def spread(prompt):
    """The prompt with its layers on two devices."""
    layers = {}
    for layer, part in prompt.layers.items():
        where = FIRST if layer < 2 else SECOND
        changes = {
            field.name: on_device(value, where)
            for field in dataclasses.fields(PromptLayer)
            if isinstance(value := getattr(part, field.name), torch.Tensor)
        }
        layers[layer] = dataclasses.replace(part, memory=None, **changes)
    return dataclasses.replace(prompt, layers=layers)


def opened(model, name, options, prompt, **settings):
    kind = method_class(name)
    return Session(
        model, kind, parse(kind.Config, options, "method"), prompt, max_new_tokens=30,
        clock=ticks(), last_use=False, probe=CountingProbe(), **settings,
    )  # fmt: skip


def outputs(session, prompt, steps):
    """Attention of every layer in decode steps, from inputs where the layer is."""
    session.build()
    generator, found = torch.Generator().manual_seed(3), []
    for _ in range(steps):
        for method in session.methods:
            method.begin_step()
        for layer, part in prompt.layers.items():
            like = part.k_BGSD
            heads = (prompt.num_heads, *[like.shape[1]] * 2)
            made = [torch.randn(2, n, 1, like.shape[3], generator=generator) for n in heads]
            if isinstance(like, OnDevice):
                made = [on_device(x, str(like.device)) for x in made]
            out = session.attend(layer, *made, ARGS)
            assert out.device == like.device
            found.append(out.data_on_host if isinstance(out, OnDevice) else out)
        for method in session.methods:
            method.end_step()
    session.report_counts()
    return torch.stack(found), session.probe.row()["attended_tokens"]


@pytest.mark.parametrize(("name", "options", "steps"), CASES, ids=str)
@torch.inference_mode()
def test_layers_on_two_devices_give_what_one_gives(name, options, steps, tiny_llama, monkeypatch):
    monkeypatch.setenv("RETROBENCH_KERNELS", "naive")
    hf.attach(tiny_llama)
    needs, prompts = method_class(name).needs, [random_ids(110), random_ids(103, 1)]
    prompt = prefill(tiny_llama, prompts, clock=ticks(), needs=needs, room=30)
    expected = outputs(opened(tiny_llama, name, options, prompt), prompt, steps)
    with Emulated():
        apart = spread(prompt)
        assert set(apart.devices.values()) == {FIRST, SECOND}
        session = opened(tiny_llama, name, options, apart)
        got = outputs(session, apart, steps)
        assert len(session.methods) == 2
        assert {method.shape.device for method in session.methods} == {FIRST, SECOND}
        session.close()
    torch.testing.assert_close(got[0], expected[0], atol=1e-5, rtol=1e-5)
    assert got[1] == pytest.approx(expected[1])


def test_a_method_that_serves_all_layers_together_says_so(tiny_llama):
    hf.attach(tiny_llama)
    prompt = prefill(tiny_llama, [random_ids(100)], clock=ticks(), room=30)
    with Emulated(), pytest.raises(ValueError, match="pyramidkv serves all layers together.*one"):
        opened(tiny_llama, "pyramidkv", {}, spread(prompt))


def test_a_graph_needs_one_device(tiny_llama):
    hf.attach(tiny_llama)
    prompt = prefill(tiny_llama, [random_ids(100)], clock=ticks(), room=30)
    with Emulated(), pytest.raises(ValueError, match="layers are on cpu:0, cpu:1"):
        opened(tiny_llama, "full", {}, spread(prompt), executor="graph")


def test_the_clock_waits_for_the_devices_that_it_is_asked_for(monkeypatch):
    waited = []
    monkeypatch.setattr(torch.cuda, "synchronize", waited.append)
    make_clock("cuda:1", "cpu", "cuda:0")()
    assert waited == ["cuda:1", "cuda:0"] and make_clock("cpu") is time.perf_counter


def test_a_launch_goes_to_the_device_of_its_tensors(monkeypatch):
    class Remote:
        is_cuda, is_cpu, device = True, False, torch.device("cuda:1")

        def get_device(self):
            return 1

    current = [0]

    class Guard:
        def __init__(self, device):
            self.device = device

        def __enter__(self):
            current.append(self.device.index)

        def __exit__(self, *_):
            current.pop()

    def double(x):
        return current[-1]

    monkeypatch.setattr(torch.cuda, "current_device", lambda: current[-1])
    monkeypatch.setattr(torch.cuda, "device", Guard)
    monkeypatch.setattr(dispatch, "_form", lambda *_: (double, lambda tensor: None))
    assert dispatch.Op(double)(Remote()) == 1 and current == [0]
