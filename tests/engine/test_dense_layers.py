"""Layers left to full attention: with any method, as a method's own dense layers."""

from __future__ import annotations

import pytest
import torch

from retrobench.core.budget import Budget
from retrobench.core.registry import method_class
from retrobench.core.spec import parse
from retrobench.engine import hf
from retrobench.engine.dense_layers import with_dense_layers
from retrobench.engine.session import Session
from retrobench.measure.probe import CountingProbe
from retrobench.run.spec import EngineConfig
from tests.methods.test_contract import make_calibrations, prompt


def decoded(model, name, options, dense, ids, steps=4):
    """(logits of each step, probe); plan and allocation must agree."""
    hf.attach(model)
    method = with_dense_layers(method_class(name), dense)
    config, probe = parse(method.Config, options, "method"), CountingProbe()
    budget = Budget.parse("40%")
    session = Session(
        model, method, config, ids, probe=probe, clock=lambda: 0.0, max_new_tokens=steps,
        budget=budget, chunk_tokens=150,
    )  # fmt: skip
    with torch.inference_mode():
        session.prefill(session.ids_BS.shape[1])
        session.seal()
        logits = [session.step(torch.full((len(ids), 1), 5 + i)) for i in range(steps)]
    assert session.method.allocated() == method.plan(config, session.shape, budget)
    session.close()
    return torch.stack(logits), probe


@pytest.mark.parametrize("name", ["quest", "infinigen"])
def test_it_equals_the_methods_own_dense_layers(name, tiny_llama, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    make_calibrations(tiny_llama)
    ids = [prompt(300), prompt(280, 1)]
    own, mine = decoded(tiny_llama, name, {"dense_layers": [0, 1]}, (), ids)
    left, probe = decoded(tiny_llama, name, {"dense_layers": []}, (0, 1), ids)
    torch.testing.assert_close(left, own, rtol=1e-4, atol=1e-5)
    assert probe.row()["attended_tokens"] == mine.row()["attended_tokens"]
    assert probe.row()["bytes_per_step"]["kv"] == mine.row()["bytes_per_step"]["kv"]


@pytest.mark.parametrize("name", ["retroinfer", "random", "full_offload", "full"])
def test_only_the_other_layers_are_the_methods(name, tiny_llama):
    options = {"update_tokens": 64} if name == "retroinfer" else {}
    _, probe = decoded(tiny_llama, name, options, (1,), [prompt(300)])
    assert probe.attended[1] == sum(range(301, 305))
    sparse = not name.startswith("full")
    assert (probe.attended[0] < 0.8 * probe.attended[1]) == sparse


def test_names_that_do_not_fit_are_refused(tiny_llama):
    for dense in ((0, 7), (0, 1, 2)):
        with pytest.raises(ValueError, match="name some, not all, of the model's layers 0-2"):
            decoded(tiny_llama, "full", {}, dense, [prompt(50)])
    assert with_dense_layers(method_class("full"), ()) is method_class("full")
    assert "dense_layers" not in EngineConfig().identity
    assert EngineConfig(dense_layers=(0,)).identity["dense_layers"] == [0]
