"""Layers left to full attention: with any method, as a method's own dense layers."""

from __future__ import annotations

import pytest
import torch

from retrobench.core.budget import Budget
from retrobench.engine.session import plan_session
from retrobench.run.spec import EngineConfig
from tests.support import make_calibrations, open_on, random_ids

BUDGET = Budget.parse("40%")


def decoded(model, name, options, dense, ids, steps=4):
    """(logits of each step, probe); plan and allocation must agree."""
    session = open_on(
        model, name, ids, options, new_tokens=steps, budget=BUDGET, chunk_tokens=150,
        dense_layers=dense,
    )  # fmt: skip
    with torch.inference_mode():
        logits = [session.step(torch.full((len(ids), 1), 5 + i)) for i in range(steps)]
    method = session.method
    planned = plan_session(type(method), method.config, session.shape, BUDGET, dense)
    assert session.allocated() == planned
    session.report_counts()
    session.close()
    return torch.stack(logits), session.probe


@pytest.mark.parametrize("name", ["quest", "infinigen"])
def test_it_equals_the_methods_own_dense_layers(name, tiny_llama, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    make_calibrations(tiny_llama)
    ids = [random_ids(300), random_ids(280, 1)]
    own, mine = decoded(tiny_llama, name, {"dense_layers": [0, 1]}, (), ids)
    left, probe = decoded(tiny_llama, name, {"dense_layers": []}, (0, 1), ids)
    torch.testing.assert_close(left, own, rtol=1e-4, atol=1e-5)
    assert probe.row()["attended_tokens"] == mine.row()["attended_tokens"]
    assert probe.row()["bytes_per_step"]["kv"] == mine.row()["bytes_per_step"]["kv"]


@pytest.mark.parametrize("name", ["retroinfer", "random", "full_offload", "full"])
def test_only_the_other_layers_are_the_methods(name, tiny_llama):
    options = {"update_tokens": 64} if name == "retroinfer" else {}
    _, probe = decoded(tiny_llama, name, options, (1,), [random_ids(300)])
    assert probe.by_layer("attended")[1] == sum(range(301, 305))
    sparse = not name.startswith("full")
    attended = probe.by_layer("attended")
    assert (attended[0] < 0.8 * attended[1]) == sparse


def test_names_that_do_not_fit_are_refused(tiny_llama):
    for dense in ((0, 7), (0, 1, 2)):
        with pytest.raises(ValueError, match="name some, not all, of the model's layers 0-2"):
            decoded(tiny_llama, "full", {}, dense, [random_ids(50)])
    assert "dense_layers" not in EngineConfig().identity
    assert EngineConfig(dense_layers=(0,)).identity["dense_layers"] == [0]
