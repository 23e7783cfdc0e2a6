"""The GPU experiments on a CPU, tiny: rows, parity before time, drifting queries, static steps."""

from __future__ import annotations

import pytest
import torch
from rich.console import Console

from retrobench.cli import app as cli
from retrobench.evaluate import kernels
from retrobench.evaluate import machine as measured
from retrobench.measure.machine import Absent
from retrobench.report.tables.overview import COLUMNS, print_tables
from retrobench.store.results import ResultStore
from retrobench.tasks.machine import KERNELS
from tests.e2e.runs import config


def job(results_dir, task, **options):
    return config(results_dir, **{"method": {"name": "full"}, "task": task, **options})


def machine(**options):
    small = {"context": 512, "batch": [1, 2], "size_gib": 0.001, "pool_gib": 0.001, "repeats": 3}
    return {"name": "machine", **small, **options}


def speed(**options):
    small = {"context": 2048, "batch": 1, "steps": 3, "warmup": 1, "error_steps": 3, "cold": False}
    return {"name": "speed", "shape": "qwen25_7b", **small, **options}


def rows_of(results_dir, outcome):
    rows = ResultStore(results_dir).read(outcome["key"]).rows.values()
    return {row["sample"]: row for row in rows}


def test_machine_rows_resume_and_table(tmp_path):
    outcome = cli.run_job(job(tmp_path, machine()))
    assert outcome["ran"] == 3 + 2 * len(KERNELS) and not outcome["failed"]
    for row in rows_of(tmp_path, outcome).values():
        found = row["machine"]
        assert 0 < found["p10_s"] <= found["time_s"] <= found["p90_s"]
        assert found["bytes"] > 0 and found["mode"] == "eager"
        assert (found["parity_error"] is not None) == (row["meta"]["case"] in KERNELS)
    assert cli.run_job(job(tmp_path, machine()))["cached"] == outcome["ran"]
    console = Console(width=200, record=True)
    print_tables(ResultStore(tmp_path).columns(COLUMNS, None), console)
    text = console.export_text()
    assert "what this machine reaches" in text and "wave_step" in text and "scores" not in text


def test_pinned_memory_needs_a_gpu(tmp_path):
    outcome = cli.run_job(job(tmp_path, machine(cases=["pinned_kernel", "copy"])))
    assert outcome["ran"] == 2 and outcome["failed"] == {"error": 1}
    row = rows_of(tmp_path, outcome)["pinned_kernel-0.001GiB"]
    assert "page-locked memory from a GPU: none is in use" in row["message"]


def test_a_case_larger_than_the_machine_is_absent_and_no_failure(tmp_path, monkeypatch):
    monkeypatch.setattr(measured, "available_bytes", lambda: 100 * 2**30)
    with pytest.raises(Absent, match=r"needs 128.0 GiB but only 100.0 GiB.*use a smaller one"):
        measured._pinned("pinned_kernel", 64 * 2**30, "cuda")

    def absent(*args):
        raise Absent("task.pool_gib=64 needs more")

    monkeypatch.setattr(measured, "_pinned", absent)
    for again in (False, True):
        task = job(tmp_path, machine(cases=["pinned_engine", "copy"]))
        outcome = cli.run_job(task)
        assert not outcome["failed"] and outcome["cached" if again else "ran"] == 2
    row = rows_of(tmp_path, outcome)["pinned_engine-0.001GiB"]
    assert row["status"] == "absent" and "needs more" in row["message"]
    assert cli.run_job(job(tmp_path, machine(cases=["pinned_engine", "copy"]), retry=True))["ran"]


@pytest.mark.parametrize("name", KERNELS)
def test_a_kernel_that_differs_has_no_time(name, tmp_path, monkeypatch):
    form = getattr(kernels, name)

    def wrong(*args, **kwargs):
        first, *rest = form(*args, **kwargs)
        return first + (torch.nan if first.is_floating_point() else 1), *rest

    wrong.reference = form.reference  # type: ignore[attr-defined]
    monkeypatch.setattr(kernels, name, wrong)
    outcome = cli.run_job(job(tmp_path, machine(cases=[name], batch=1)))
    (row,) = rows_of(tmp_path, outcome).values()
    assert row["status"] == "error" and "differs from its naive form" in row["message"]
    assert "machine" not in row


def test_drift_sets_the_hit_ratio(tmp_path):
    method = {"name": "retroinfer", "placement": "cpu", "cache": "host"}
    ratios = []
    for drift in (0, 0.9, 0.999):
        task = speed(drift=drift, warmup=4, error_steps=0)
        (row,) = rows_of(tmp_path, cli.run_job(job(tmp_path, task, method=method))).values()
        ratios.append(row["live"]["hit_ratio"])
    assert ratios[0] < ratios[1] < ratios[2] and ratios[2] > 0.8


def test_default_drift_leaves_the_keys_of_rows_on_disk(tmp_path):
    ran = cli.run_job(job(tmp_path, speed()))
    store = ResultStore(tmp_path)
    assert "drift" not in store.cell(ran["key"])["cell"]["task"]
    assert cli.run_job(job(tmp_path, speed(drift=0.0)))["key"] == ran["key"]
    drifting = cli.run_job(job(tmp_path, speed(drift=0.5)))
    assert drifting["key"] != ran["key"]
    assert store.cell(drifting["key"])["labels"]["model"] == "qwen25_7b shape, drift 0.5"


@pytest.mark.parametrize(
    "method",
    [
        {"name": "full"},
        {"name": "retroinfer", "placement": "gpu", "cache": "none"},
        {"name": "retroinfer", "placement": "cpu", "cache": "device"},
    ],
    ids=lambda method: "-".join(method.values()),
)
def test_static_steps_of_all_layers_give_what_single_calls_give(method, tmp_path):
    found = []
    for executor in ("eager", "graph"):
        task = job(tmp_path, speed(layers=2), method=method, engine={"executor": executor})
        (row,) = rows_of(tmp_path, cli.run_job(task)).values()
        assert row["executor"] == executor and row["status"] == "ok", row.get("message")
        assert set(row["live"]["decode_calls"]) == {"8", "9"}
        found.append((row["speed"]["output_error"], row["live"]["bytes_per_step"]))
    (error, moved), (graph_error, graph_moved) = found
    assert graph_error == pytest.approx(error, rel=0.05) and graph_moved["kv"] == moved["kv"]


def test_a_graph_that_cannot_be_says_why(tmp_path):
    method = {"name": "retroinfer", "placement": "cpu", "cache": "host"}
    task = job(tmp_path, speed(), method=method, engine={"executor": "graph"})
    (row,) = rows_of(tmp_path, cli.run_job(task)).values()
    assert "engine.executor=graph: method.cache=host" in row["message"]
