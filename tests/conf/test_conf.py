"""Every yaml composes and parses; every experiment runs; public option names are frozen."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from retrobench.cli import app as cli
from retrobench.cli import overrides, sweep
from retrobench.core.registry import method_class, method_names
from retrobench.run.spec import parse_run
from retrobench.tasks import task_class, task_names
from tests import small_longbench
from tests.support import architecture

CONF = Path(__file__).resolve().parents[2] / "conf"
CHOICES = [
    (folder.name, path.stem)
    for folder in sorted(CONF.iterdir())
    if folder.is_dir() and folder.name not in {"experiment", "local"}
    for path in sorted(folder.glob("*.yaml"))
]
SMALL = {
    "ruler": {"length": 1600, "samples": 1, "tasks": ["niah_single_2"]},
    "niah": {"length": 1600, "samples": 1, "depths": 1},
    "longbench": {"tasks": ["qasper"]},
    "long_generation": {"length": 1600, "samples": 1, "items": 8, "answer_tokens": 0},
    "reasoning": {"tasks": ["aime24"], "max_new_tokens": 16},
    "speed": {"context": 1200, "batch": 1, "layers": 1, "steps": 3, "warmup": 1, "error_steps": 1},
    "serve": {"requests": 20, "rate": [1.0], "max_context": 2048, "lengths": "dolphin_short"},
    "machine": {"context": 512, "batch": 1, "size_gib": 0.001, "repeats": 3},
}
SNAPSHOT = Path(__file__).parent / "options.json"


def composed(*overrides):
    with initialize_config_dir(str(CONF), version_base="1.3"):
        raw = OmegaConf.to_container(compose("config", list(overrides)), resolve=True)
    raw.pop("hydra", None)
    return raw


@pytest.mark.parametrize(("group", "name"), CHOICES)
def test_every_yaml_parses(group, name):
    alone = ["task=serve"] if (group, name) == ("measure", "replay") else []  # its only task
    assert parse_run(composed(f"{group}={name}", *alone))


def test_every_method_and_task_has_a_yaml():
    assert {name for group, name in CHOICES if group == "method"} == set(method_names())
    assert {name for group, name in CHOICES if group == "task"} == set(task_names())


@pytest.mark.parametrize("path", sorted((CONF / "experiment").glob("*.yaml")), ids=lambda p: p.stem)
def test_every_experiment_runs_small(path, tmp_path):
    text = path.read_text()
    assert f"python run.py -m experiment={path.stem}" in text
    assert "on two CPU cores" in text or "for a GPU" in text  # what it takes
    with initialize_config_dir(str(CONF), version_base="1.3"):
        config = compose("config", [f"experiment={path.stem}"], return_hydra_config=True)
    last = sweep.jobs(config)[-1]
    raw = composed(f"experiment={path.stem}", *last, f"results_dir={tmp_path}", "progress=false")
    raw["task"] |= SMALL.get(raw["task"]["name"], {})
    if raw["model"].get("weights") == "random":
        raw["model"]["config_json"] = architecture()
    else:
        raw["model"] = composed("model=constructed")["model"]
        dense = raw["engine"].get("dense_layers", [])
        raw["engine"]["dense_layers"] = [0] if dense else []  # of two layers
    if path.stem == "gpu_ceilings":
        raw["task"]["cases"] = ["copy", "read", "launch"]  # the others need a GPU
    if raw["task"]["name"] == "longbench":
        small_longbench.write(tmp_path / "data", count=1, size=6)
        raw["data"]["root"] = str(tmp_path / "data")
    if raw["task"]["name"] == "reasoning":
        questions = tmp_path / "data" / "reasoning" / "aime24.json"
        questions.parent.mkdir(parents=True)
        questions.write_text('[{"question": "How many legs has an ant?", "answer": "6"}]')
        raw["data"]["root"] = str(tmp_path / "data")
    if raw["task"]["name"] == "trace":
        raw |= replay_of_small_trace(raw, tmp_path)
    outcome = cli.run_job(raw)
    # of a matched cell that is its own reference, nothing is left to run
    assert outcome["ran"] + outcome["cached"] > 0 and not outcome["failed"]


def replay_of_small_trace(raw, tmp_path):
    """Records a trace, and says what the experiment then runs on."""
    path = str(tmp_path / "trace")
    made = {"name": "trace", "path": path, "tasks": ["vt"], "length": 1300, "samples": 1}
    cli.run_job({**raw, "method": {"name": "full"}, "budget": None, "task": made})
    return {
        "model": {"name": "", "source": "trace", "path": path},
        "task": {"name": "trace", "path": path, "replay": True},
    }


def test_prepare_adds_typed_options_and_checks_choices():
    assert overrides.prepare(["method.num_clusters=2,4", "method=full", "budget=2%"], CONF) == [
        "++method.num_clusters=2,4",
        "method=full",
        "budget=2%",
    ]
    with pytest.raises(ValueError, match="did you mean retroinfer"):
        overrides.prepare(["method=full,retroinfr"], CONF)
    with pytest.raises(ValueError, match="budgt: no such option, did you mean budget"):
        overrides.prepare(["budgt=2%"], CONF)
    hydras_own = [
        "hydra.verbose=true",
        "+local=mine",
        "experiment=cluster_count",
        "~tracker",
    ]
    assert overrides.prepare(hydras_own, CONF) == hydras_own


def test_public_options_are_frozen():
    """A removed or renamed option breaks users: change the snapshot on purpose only."""
    now = {f"method={m}": method_class(m).Config for m in method_names()}
    now |= {f"task={t}": task_class(t).Config for t in task_names()}
    names = {k: sorted(f.name for f in dataclasses.fields(c)) for k, c in sorted(now.items())}
    assert names == json.loads(SNAPSHOT.read_text())
