"""``make gpu-first`` without a GPU: what it would do fits its minutes and its machine."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest
import torch
from rich.console import Console

from retrobench.cli import gpu_first
from retrobench.core.shapes import Footprint

ROOT = Path(__file__).parents[2]


@pytest.mark.skipif(torch.cuda.is_available(), reason="would run")
@pytest.mark.parametrize("dry_run", [True, False])
def test_without_a_gpu_it_says_what_it_would_do(dry_run, monkeypatch):
    monkeypatch.setattr(gpu_first.subprocess, "run", None)  # nothing may start
    seen = []
    monkeypatch.setattr(gpu_first, "cases", lambda stage: seen.append(stage.name) or [])
    console = Console(width=200, record=True)
    assert gpu_first.run(dry_run, console) == 0
    text = console.export_text()
    assert seen == [stage.name for stage in gpu_first.STAGES]
    assert ("no CUDA device" in text) is not dry_run and "run.py -m measure=latency" in text


def test_every_case_fits_and_stages_keep_their_minutes():
    assert sum(stage.minutes for stage in gpu_first.STAGES) <= 15
    found = {stage.name: list(gpu_first.cases(stage)) for stage in gpu_first.STAGES}
    for stage in gpu_first.STAGES:
        members = found[stage.name]
        assert all((ROOT / path).exists() for path in stage.tests)
        assert bool(members) != bool(stage.tests), stage.name
        assert gpu_first.assumed_minutes(members) <= stage.minutes, stage.name
        assert [case.label for case in members if case.verdict != "fits"] == []
    pinned = found["decode_pinned"][0].need
    assert pinned.pinned > 14 * 2**30 and 15 * 2**30 < pinned.device < 20 * 2**30


def test_what_does_not_fit_is_said():
    for need, said in (
        (Footprint(device=200 * 2**30), "too large for the device"),
        (Footprint(pinned=129 * 2**30), "too large for the host"),
    ):
        assert gpu_first.Case("x", need, 1.0).row()[-1] == said


def test_a_stage_that_fails_or_takes_too_long_does_not_stop_the_others(monkeypatch):
    def run(command, timeout):
        if "tests/gpu" in command:
            raise subprocess.TimeoutExpired(command, timeout)
        return subprocess.CompletedProcess(command, int("task=machine" in command))

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(gpu_first.subprocess, "run", run)
    console = Console(width=200, record=True)
    assert gpu_first.run(False, console) == 1
    text = console.export_text()
    assert "tests: stopped at its limit" in text and "ceilings: FAILED" in text
    assert "backends: done" in text and "not done: ['tests', 'ceilings']" in text


def test_make_has_a_dry_run():
    command = ["make", "--dry-run", "gpu-first", "GPU_PYTHON=echo"]
    outside = {name: value for name, value in os.environ.items() if not name.startswith("MAKE")}
    done = subprocess.run(
        command, cwd=ROOT, env=outside, capture_output=True, text=True, check=True
    )
    assert done.stdout.splitlines()[-1] == "scripts/gpu_first.py --dry-run"
