"""A recorded trace replays every method bit for bit, with no model."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from retrobench.cli import app as cli
from retrobench.cli import console, overrides
from retrobench.core import traces
from retrobench.core.traces import read_manifest
from retrobench.engine.replay import TraceModel
from retrobench.store.results import ResultStore
from tests.e2e.runs import config

CONF = Path(__file__).resolve().parents[2] / "conf"
TASK = {"name": "trace", "tasks": ["niah_multikey_2"], "length": 1300, "samples": 1, "steps": 6}
METHODS = {
    "full": {},
    "retroinfer": {"tokens_per_cluster": 8},
    "quest": {"dense_layers": [0]},
    "infinigen": {"dense_layers": [0], "alpha": 8.0},
}


def rows(results, **changes):
    """The rows of one cell, by sample."""
    outcome = cli.run_job(config(results, **{"method": {"name": "full"}, **changes}))
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


def test_a_trace_of_a_few_layers_replays_them_alone(tmp_path):
    trace, runs = str(tmp_path / "trace"), tmp_path / "runs"
    (recorded,) = rows(runs, task={**TASK, "path": trace, "layers": [1]})
    assert recorded["status"] == "ok", recorded
    assert len(list((tmp_path / "trace").glob("*.safetensors"))) == 1
    ruler = {"name": "ruler", "tasks": TASK["tasks"], "length": 1300, "samples": 1}
    for name in ("retroinfer", "infinigen"):
        measure = {"name": "fidelity", "steps": 6}
        setup = {"method": {"name": name, **METHODS[name]}, "measure": measure}
        (live,) = rows(runs, task=ruler, **setup)
        if "dense_layers" in METHODS[name]:
            setup["method"] = {**setup["method"], "dense_layers": []}  # layer 0 is not there
        replay = {"name": "trace", "path": trace, "replay": True}
        (played,) = rows(runs, task=replay, model={"source": "trace", "path": trace}, **setup)
        assert played["fidelity"]["layers"] == [1]
        for measured, values in played["fidelity"]["layer_mean"].items():
            expected = live["fidelity"]["layer_mean"][measured][1:]
            assert values == pytest.approx(expected, rel=1e-5), (name, measured)
    (refused,) = rows(runs, task={**TASK, "path": str(tmp_path / "x"), "layers": [7]})
    assert "task.layers=[7]: the layers with full attention are 0, 1" in refused["message"]
    (other,) = rows(runs, task={**TASK, "path": trace, "layers": [0]})
    assert "use another task.path" in other["message"]


def test_the_library_is_recorded_once_and_again_where_it_is_damaged(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("RETROBENCH_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    prompts = (("niah_multikey_2", 600), ("niah_single_1", 600))
    tiny = traces.LibraryTrace(name="tiny", model="constructed", layers=(1,), prompts=prompts)
    monkeypatch.setattr(traces, "LIBRARY", {"tiny": tiny})
    with pytest.raises(ValueError, match="run `retrobench traces tiny`"):
        traces.trace_folder("tiny")
    with pytest.raises(ValueError, match="did you mean tiny"):
        traces.trace_folder("tinny")
    assert console.main(["traces"]) == 0
    folder = traces.trace_folder("tiny")
    before = traces.content_digest(read_manifest(folder))
    assert read_manifest(folder)["dtype"] == "bfloat16"

    broken = sorted(folder.glob("*.safetensors"))[1]
    broken.write_bytes(broken.read_bytes()[:-1] + b"?")
    assert console.main(["traces", "--verify"]) == 1
    assert "tiny: not as recorded: niah_single_1 of 600 tokens" in capsys.readouterr().out
    assert console.main(["traces", "tiny"]) == 0
    out = capsys.readouterr().out
    assert "recording niah_single_1" in out and "multikey" not in out
    assert console.main(["traces", "--verify"]) == 0
    assert traces.content_digest(read_manifest(folder)) == before
    assert console.main(["traces", "--list"]) == 0

    asked = ["model=trace:tiny", "method=quest", "method.dense_layers=[]", "budget=10%"]
    asked += [
        "protocol=decode_tail",
        "measure.steps=4",
        f"results_dir={tmp_path}",
        "progress=false",
    ]
    outcome = cli.run_job(overrides.composed(asked, CONF))
    played = list(ResultStore(tmp_path).read(outcome["key"]).rows.values())
    assert [row["task"] for row in played] == ["niah_multikey_2", "niah_single_1"]
    assert all(row["fidelity"]["steps"] > 32 for row in played)


def test_what_cannot_be_replayed_says_so(tmp_path):
    with pytest.raises(ValueError, match="task=trace task.path"):
        TraceModel(tmp_path, "cpu")


def test_the_short_form_sets_model_task_and_measure():
    prepared = overrides.prepare(["model=trace:some/where", "method=quest"], CONF)
    expected = {"model=trace", "task=trace", "measure=fidelity", "++task.replay=true"}
    assert expected < set(prepared) and "++model.path=some/where" in prepared
    swept = overrides.prepare(["model=trace:one,trace:two"], CONF)
    assert "++model.path=one,two" in swept and "++task.path=${model.path}" in swept
    assert overrides.prepare(["measure=score,fidelity"], CONF) == [
        "measure=fidelity",
        "++measure.score=true",
    ]
