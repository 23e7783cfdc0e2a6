"""A remembered plan that was damaged or edited is told, and the run is made anew."""

from __future__ import annotations

import json
import os
import warnings

import pytest

from retrobench.core.paths import cache_root
from retrobench.run import plan_cache
from retrobench.run.plan import plan_summary
from retrobench.run.spec import parse_run
from tests.e2e.runs import config


def _pipe(path):
    path.unlink()
    os.mkfifo(path)


def _edit(path):
    entry = json.loads(path.read_text())
    entry["value"]["key"] = "0" * 16
    path.write_text(json.dumps(entry))


@pytest.fixture
def plan(tmp_path, monkeypatch):
    """A remembered run: its configuration, summary and file."""
    monkeypatch.setenv("RETROBENCH_CACHE", str(tmp_path))
    raw = config(tmp_path / "runs")
    summary, _ = plan_summary(parse_run(raw))
    plan_cache.keep(raw, summary)
    (file,) = (cache_root() / "plans").iterdir()
    return raw, summary, file


@pytest.mark.parametrize(
    "damage",
    [
        _edit,
        _pipe,
        lambda path: path.write_bytes(b""),
        lambda path: path.write_bytes(path.read_bytes()[:-20]),
        lambda path: path.write_bytes(b"[" * 100_000),
        lambda path: path.write_bytes(b"\xff" + path.read_bytes()),
        lambda path: path.write_text("[1]"),
        lambda path: path.write_text(json.dumps(json.loads(path.read_text())["value"])),
    ],
)
def test_a_damaged_plan_is_told_and_made_anew(plan, damage):
    raw, summary, file = plan
    damage(file)
    with pytest.warns(UserWarning, match=f"{file.name}: damaged.*made anew"):
        assert plan_cache.find(raw) is None
    plan_cache.keep(raw, summary)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert plan_cache.find(raw) == summary


def test_a_plan_under_the_name_of_another_is_not_believed(plan):
    raw, summary, file = plan
    other = {**raw, "budget": "5%"}
    plan_cache.keep(other, summary)
    (copied,) = (path for path in file.parent.iterdir() if path != file)
    copied.write_bytes(file.read_bytes())
    with pytest.warns(UserWarning, match="made anew"):
        assert plan_cache.find(other) is None


def test_a_plan_that_was_never_made_is_no_damage(plan):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert plan_cache.find({**plan[0], "budget": "7%"}) is None


def test_an_option_may_hold_a_whole_architecture(plan):
    _, summary, file = plan
    text = json.dumps({"model_type": "llama", "rms_norm_eps": 1.5, "about": "a" * 400})
    raw = config(file.parent, model={"source": "hf", "weights": "random", "config_json": text})
    assert plan_cache.find(raw) is None  # no file has so long a name
    plan_cache.keep(raw, summary)
    assert plan_cache.find(raw) == summary
