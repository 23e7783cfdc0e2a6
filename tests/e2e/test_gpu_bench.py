"""The GPU benchmark's plumbing on tiny shapes: every stage gives rows, whatever fails inside."""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

SCRIPTS = Path(__file__).parents[2] / "scripts"


@pytest.fixture(autouse=True)
def scripts_on_path(monkeypatch):
    monkeypatch.syspath_prepend(str(SCRIPTS))


@pytest.mark.parametrize(
    ("stage", "cases"),
    [
        ("kernels", 5),
        ("baselines", 6),
        ("layers", 7),
        ("decode", 7),
        ("index_build", 3),
    ],
)
def test_stage_on_tiny_shapes(stage, cases):
    from gpu_stages.common import Bench

    torch.manual_seed(0)
    bench = Bench("cpu", smoke=True)
    importlib.import_module(f"gpu_stages.{stage}").run(bench)
    wrong = [row for row in bench.rows if row["status"] not in ("ok", "absent")]
    assert not wrong and len(bench.rows) == cases
    for row in bench.rows:
        assert row["status"] == "absent" or row["case"] == "offload" or row["median_s"] > 0
    if stage == "baselines":
        assert sum(row.get("best", False) for row in bench.rows) == 1
    if stage == "layers":
        ratios = [row["hit_ratio"] for row in bench.rows if "hit_ratio" in row]
        assert len(ratios) == 4 and max(ratios) == ratios[0] > ratios[-1]


def test_a_failing_case_is_a_row_and_the_rest_runs():
    from gpu_stages import common

    bench = common.Bench("cpu", smoke=True)

    @bench.case("broken")
    def _(row):
        row["before"] = 1
        raise ValueError("no")

    @bench.case("missing")
    def _(row):
        import no_such_package  # noqa: F401

    bench.started -= common.STAGE_S + 1

    @bench.case("too late")
    def _(row):
        raise AssertionError("must not run")

    assert [row["status"] for row in bench.rows] == ["error", "absent", "late"]
    assert bench.rows[0]["before"] == 1 and bench.rows[0]["error"] == "ValueError: no"


def test_targets_come_from_good_rows_of_both_sides():
    from gpu_stages import table

    shape = {"batch": 7, "context": 120_000, "status": "ok"}
    rows = [
        {"case": "full_layer", "backend": "own", "median_s": 9.0, **shape},
        {"case": "full_layer", "backend": "sdpa_flash", "median_s": 6.0, **shape},
        {"case": "retroinfer_layer", "place": "gpu", "median_s": 2.0, **shape},
        {"case": "retroinfer_layer", "place": "pinned", "median_s": 1.0, **shape},
        {"case": "decode_step", "method": "full", "cap_gib": None, "median_s": 1.0, **shape},
        {"case": "decode_step", "method": "retroinfer", **shape, "status": "oom"},
        {"case": "index_layer", "context": 120_000, "final_assign": "global", "status": "ok",
         "share_of_prefill_frac": 0.031},
    ]  # fmt: skip
    text = table.markdown(rows, [{"gpu": "X", "commit": "abc"}])
    lines = {line.split(" | ")[0]: line for line in text.splitlines()}
    assert "| 3.00x | 8x" in lines["| KV on GPU, 120K, batch 7: attention"]
    assert "not measured" in lines["| KV on GPU, 120K, batch 7: whole step"]
    assert "| 3.10% | 5%" in lines["| index build over prefill, 120K"]
    assert '"commit": "abc"' in text


def test_command_line(tmp_path):
    def run(*arguments):
        command = [sys.executable, str(SCRIPTS / "gpu_bench.py"), *arguments]
        return subprocess.run(command, capture_output=True, text=True)

    done = run("ceilings", "--smoke", "--out", str(tmp_path))
    assert done.returncode == 0, done.stdout + done.stderr
    result = json.loads((tmp_path / "gpu_ceilings.json").read_text())
    assert result["smoke"] and result["machine"]["versions"]["torch"]
    assert {row["case"] for row in result["rows"]} >= {"device_copy", "pinned"}
    assert "not measured" in run("table", "--out", str(tmp_path)).stdout
    assert (tmp_path / "gpu_targets.md").exists()
    refused = run("ceilings", "--smoke")
    assert refused.returncode == 2 and "--out" in refused.stderr
