"""A recorded trace replays every method bit for bit, with no model."""

from __future__ import annotations

import pytest
import torch

from retrobench.cli import app as cli
from retrobench.cli import overrides
from retrobench.engine.replay import TraceModel, read_manifest
from retrobench.store.results import ResultStore

TASK = {"name": "trace", "tasks": ["niah_multikey_2"], "length": 1300, "samples": 1, "steps": 6}
METHODS = {
    "full": {},
    "retroinfer": {"tokens_per_cluster": 8},
    "quest": {"dense_layers": [0]},
    "infinigen": {"dense_layers": [0], "alpha": 8.0},
}


def rows(results, **changes):
    """The rows of one cell, by sample."""
    raw = {
        "model": {"name": "constructed", "source": "constructed"},
        "method": {"name": "full"},
        "results_dir": str(results),
        "progress": False,
        "data": {"root": "no-such-folder"},
    }
    outcome = cli.run_job({**raw, **changes})
    return list(ResultStore(results).read(outcome["key"]).rows.values())


def test_replay_equals_the_live_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    trace = str(tmp_path / "trace")
    (recorded,) = rows(tmp_path / "runs", task={**TASK, "path": trace})
    assert recorded["status"] == "ok" and recorded["trace"]["bytes"] > 0
    manifest = read_manifest(tmp_path / "trace")
    assert manifest["samples"][0]["recorded"]["torch"] == torch.__version__
    ruler = {"name": "ruler", "tasks": TASK["tasks"], "length": 1300, "samples": 1}
    for name, options in METHODS.items():
        setup = {"method": {"name": name, **options}, "measure": {"name": "fidelity", "steps": 6}}
        (live,) = rows(tmp_path / "runs", task=ruler, **setup)
        replay = {"name": "trace", "path": trace, "replay": True}
        model = {"source": "trace", "path": trace}
        (played,) = rows(tmp_path / "runs", task=replay, model=model, **setup)
        live["fidelity"].pop("logits")
        assert played["fidelity"] == live["fidelity"], name
        # the forced sessions: the live one's later layers see the method's own errors
        assert played["live"]["decode_calls"] == live["live"]["decode_calls"]
    (refused,) = rows(tmp_path / "runs", task=replay, model=model)
    assert "measure=fidelity" in refused["message"]


def test_what_cannot_be_replayed_says_so(tmp_path):
    with pytest.raises(ValueError, match="task=trace task.path"):
        TraceModel(tmp_path, "cpu")


def test_the_short_form_sets_model_task_and_measure():
    from pathlib import Path

    conf = Path(__file__).resolve().parents[2] / "conf"
    prepared = overrides.prepare(["model=trace:some/where", "method=quest"], conf)
    expected = {"model=trace", "task=trace", "measure=fidelity", "++task.replay=true"}
    assert expected < set(prepared) and "++model.path=some/where" in prepared
    assert overrides.prepare(["measure=score,fidelity"], conf) == [
        "measure=fidelity",
        "++measure.score=true",
    ]
