"""Sweeps as a cluster runs them: planned first, spread over processes, never run twice."""

from __future__ import annotations

import collections
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from retrobench.cli import app as cli
from retrobench.store.results import ResultStore

ROOT = Path(__file__).resolve().parents[2]
SMALL = ["task.tasks=[niah_single_2]", "task.length=1200", "task.samples=2", "model=constructed"]


def start(results, *arguments):
    command = [sys.executable, str(ROOT / "run.py"), "-m", *SMALL, f"results_dir={results}"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    pipe = subprocess.PIPE
    return subprocess.Popen(
        [*command, *arguments], stdout=pipe, stderr=pipe, text=True, cwd=ROOT, env=environment
    )


def rows_of(results):
    """How often each sample was written, by cell."""
    counts = collections.Counter()
    for path in Path(results).glob("*/rows.jsonl"):
        for line in path.read_text().splitlines():
            counts[path.parent.name, json.loads(line)["sample"]] += 1
    return counts


def config(results, **changes):
    raw = {
        "model": {"name": "constructed", "source": "constructed"},
        "method": {"name": "retroinfer"},
        "task": {"name": "ruler", "tasks": ["niah_single_2"], "length": 1200, "samples": 2},
        "results_dir": str(results),
        "progress": False,
    }
    return {**raw, **changes}


def test_a_plan_counts_cells_and_reads_no_weights(tmp_path, capsys, monkeypatch):
    from retrobench.engine import loader

    cli.run_job(config(tmp_path))
    monkeypatch.setattr(loader, "load", None)
    bad = config(tmp_path, method={"name": "retroinfer", "num_clusters": 99999})
    wrong = config(tmp_path, method={"name": "retroinfer", "num_clusterz": 1})
    new = config(tmp_path, method={"name": "full"})
    assert cli.show_plan(cli.plan_runs([config(tmp_path), new, bad, wrong])) == 1
    text = capsys.readouterr().out
    assert "4 cells: 1 run, 1 cached, 2 impossible" in text
    assert "2 samples, about" in text and "by earlier rows" in text
    assert "num_clusters=99999" in text and "did you mean method.num_clusters" in text
    assert len(ResultStore(tmp_path).cell_keys()) == 1
    axes = [config(tmp_path, match=axis, reference="quest@5%") for axis in ("tokens", "hbm")]
    assert (
        cli.show_plan(cli.plan_runs(axes)) == 0
    )  # both start from the cell on disk, and each ends in its own
    assert "2 cells: 2 run; 4 samples" in capsys.readouterr().out


def test_a_cell_that_fails_as_a_whole_is_quarantined_and_retried(tmp_path, monkeypatch, capsys):
    from retrobench.cli import console
    from retrobench.run import group

    def broken(*_):
        raise RuntimeError("the disk of hf_secret is gone")

    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    for attempt in (1, 2, 3):
        with monkeypatch.context() as patch:
            patch.setattr(group, "run_batch", broken)
            outcome = cli.run_job(config(tmp_path))
        assert outcome["failed"] == {"error": 1}
        assert ResultStore(tmp_path).status(outcome["key"])["attempts"] == attempt
    key, store = outcome["key"], ResultStore(tmp_path)
    assert "disk of *** is gone" in (store.root / key / "error.txt").read_text()
    assert cli.run_job(config(tmp_path))["failed"] == {"quarantined": 1}
    assert console.main(["ls", "--failed", "--results", str(tmp_path)]) == 0
    assert f"retrobench retry {key[:6]}" in capsys.readouterr().out
    assert console.main(["retry", key, "--results", str(tmp_path)]) == 0
    assert store.status(key)["state"] == "done" and "attempts" not in store.status(key)


def test_a_receipt_says_whether_a_cell_can_be_reproduced(tmp_path, capsys):
    from retrobench.cli import console

    key = cli.run_job(config(tmp_path))["key"]
    where = ["--results", str(tmp_path), "--samples", "1"]
    assert console.main(["verify", key, *where]) == 0
    assert json.loads(capsys.readouterr().out)["verdict"] == "identical"
    path = tmp_path / key / "rows.jsonl"
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    path.write_text("".join(json.dumps({**r, "score": 0.5}) + "\n" for r in lines))
    assert console.main(["verify", key, *where]) == 1
    receipt = json.loads((tmp_path / key / "verify.json").read_text())
    assert receipt["verdict"] == "unstable" and receipt["differences"][0].endswith("score")


def test_a_busy_cell_is_left_to_its_owner(tmp_path):
    done = cli.run_job(config(tmp_path))
    store = ResultStore(tmp_path)
    from retrobench.core.cell import Cell

    parts = store.cell(done["key"])["cell"]
    cell = Cell(**{**parts, "measure": tuple(parts["measure"])})
    task = {"name": "ruler", "tasks": ["niah_single_2"], "length": 1200, "samples": 3}
    with store.writer(cell, {"labels": {}}):
        outcome = cli.run_job(config(tmp_path, task=task))
    assert outcome["ran"] == 0 and outcome["failed"] == {"busy": 1}
    assert "another process" in outcome["message"]
    ran = {**done, "ran": 3}
    assert cli.without_duplicates([outcome, ran]) == [ran]  # two entries of one launch, one cell
    assert cli.without_duplicates([outcome, {**ran, "key": "other"}])[0] is outcome


MEASURED = {"time", "peak_bytes", "prefill_shared_by"}  # of a row, beside what ends in _s


def sweep(results, methods, **changes):
    """Cells that differ in their method, run as one sweep's unit."""
    raws = [config(results, method=method, **changes) for method in methods]
    return cli.run_jobs(raws)


def comparable(results, key):
    rows = ResultStore(results).read(key).rows
    for row in rows.values():
        for name in [name for name in row if name.endswith("_s") or name in MEASURED]:
            row.pop(name)
        row["live"].pop("span_s")
        row["method_stats"].pop("backend_ms", None)
    return rows


@pytest.mark.parametrize("measure", ["score", "latency", "fidelity"])
def test_cells_that_share_a_prefill_have_the_rows_of_cells_alone(measure, tmp_path, monkeypatch):
    from retrobench.engine import prefill_cache

    prefills = []
    original = prefill_cache.prefill
    monkeypatch.setattr(
        prefill_cache, "prefill", lambda *a, **k: prefills.append(1) or original(*a, **k)
    )
    methods = [{"name": name} for name in ("full", "retroinfer", "oracle_topk", "random")]
    methods.append({"name": "quest", "dense_layers": [0]})
    changes = {
        "measure": {"name": measure, "steps": 4} if measure == "fidelity" else {"name": measure}
    }
    shared = sweep(tmp_path / "shared", methods, **changes)
    assert len(prefills) == 2  # two samples
    alone = sweep(tmp_path / "alone", methods, **changes, engine={"prefill_share": "off"})
    assert len(prefills) == 2 + 2 * len(methods)
    assert [one["key"] for one in shared] == [one["key"] for one in alone]
    for outcome in shared:
        assert outcome["ran"] == 2 and outcome["failed"] == {}
        key = outcome["key"]
        rows = ResultStore(tmp_path / "shared").read(key).rows.values()
        assert {row["prefill_shared_by"] for row in rows} == {len(methods)}
        assert all(row["prefill_s"] > 0 for row in rows)
        assert comparable(tmp_path / "shared", key) == comparable(tmp_path / "alone", key)


def test_one_cell_that_fails_stops_no_other(tmp_path, monkeypatch):
    from retrobench_methods.random import RandomIndex

    def broken(*_):
        raise RuntimeError("no luck")

    monkeypatch.setattr(RandomIndex, "select", broken)
    methods = [{"name": name} for name in ("random", "full", "oracle_topk")]
    methods.insert(1, {"name": "retroinfer", "num_clusters": 99999})
    random, refused, full, oracle = sweep(tmp_path, methods)
    assert isinstance(refused, ValueError) and "num_clusters=99999" in str(refused)
    assert random["failed"] == {"error": 2} and full["failed"] == oracle["failed"] == {}
    row = next(iter(ResultStore(tmp_path).read(random["key"]).rows.values()))
    assert "no luck" in row["message"]


def test_cells_of_a_group_go_on_from_where_each_of_them_was(tmp_path):
    task = {"name": "ruler", "tasks": ["niah_single_2"], "length": 1200, "samples": 1}
    cli.run_job(config(tmp_path, method={"name": "full"}, task=task))
    methods = [{"name": "full"}, {"name": "oracle_topk"}]
    for batch in (1, 2):
        engine = {"batch": batch}
        found = sweep(tmp_path, methods, engine=engine)
        assert [one["ran"] for one in found] == ([1, 2] if batch == 1 else [2, 2])
        again = sweep(tmp_path, methods, engine=engine)
        assert [(one["ran"], one["cached"]) for one in again] == [(0, 2), (0, 2)]


def test_a_prefill_that_fails_is_a_row_of_every_cell(tmp_path, monkeypatch):
    import torch

    from retrobench.engine import prefill_cache

    def full_memory(*_, **__):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(prefill_cache, "prefill", full_memory)
    for outcome in sweep(tmp_path, [{"name": "full"}, {"name": "random"}]):
        assert outcome["failed"] == {"oom": 2}


def test_where_memory_is_short_cells_prefill_for_themselves(tmp_path, monkeypatch):
    from retrobench.run import plan

    methods = [{"name": "full"}, {"name": "oracle_topk"}]
    monkeypatch.setattr(plan, "prompt_bytes", lambda *_: 2**50)
    for outcome in sweep(tmp_path, methods):
        rows = ResultStore(tmp_path).read(outcome["key"]).rows.values()
        assert all("prefill_shared_by" not in row for row in rows)


def test_prefilled_prompts_on_disk_serve_a_second_command(tmp_path, monkeypatch):
    from retrobench.engine import prefill_cache

    engine = {"prefill_cache_gib": 1.0}
    cli.run_job(config(tmp_path, method={"name": "full"}, engine=engine))
    monkeypatch.setattr(prefill_cache, "prefill", None)
    outcome = cli.run_job(config(tmp_path, method={"name": "streaming"}, engine=engine))
    assert outcome["ran"] == 2 and outcome["failed"] == {}
    rows = ResultStore(tmp_path).read(outcome["key"]).rows.values()
    assert {row["prefill_from"] for row in rows} == {"disk"}


def test_units_keep_what_shares_together_and_give_every_worker_one(tmp_path):
    from retrobench.cli import units

    groups = ["a", "b", "a", "", "a", "", "b"]
    units.write(tmp_path, groups, list("0123456"), [{"n": n} for n in range(7)], 1)
    assert [units.find(tmp_path, n).jobs for n in range(7)] == [
        (0, 2, 4), (1, 6), (0, 2, 4), (3,), (0, 2, 4), (5,), (1, 6),
    ]  # fmt: skip
    assert units.find(tmp_path, 2).leader == 0 and units.find(tmp_path, 1).configs[1] == {"n": 6}
    assert units.find(tmp_path / "elsewhere", 0) is None
    assert sorted(map(len, units.split([[0, 1, 2, 3, 4]], 3))) == [1, 2, 2]
    assert units.split([[0], [1]], 5) == [[0], [1]]


@pytest.mark.slow
def test_a_killed_sweep_of_grouped_cells_loses_nothing(tmp_path):
    methods = "method=full,retroinfer,quest,oracle_topk"
    options = [methods, "task.samples=6"]
    expected = start(tmp_path / "whole", *options)
    expected.communicate(timeout=600)
    killed = start(tmp_path / "killed", *options)
    deadline = time.monotonic() + 300
    while sum(rows_of(tmp_path / "killed").values()) < 5 and time.monotonic() < deadline:
        time.sleep(0.02)
    killed.send_signal(signal.SIGKILL)
    killed.wait()
    before = rows_of(tmp_path / "killed")
    assert 5 <= sum(before.values()) < 24
    again = start(tmp_path / "killed", *options)
    text, errors = again.communicate(timeout=600)
    assert again.returncode == 0, errors
    assert set(rows_of(tmp_path / "killed").values()) == {1}
    store = ResultStore(tmp_path / "killed")
    assert sorted(store.cell_keys()) == sorted(ResultStore(tmp_path / "whole").cell_keys())
    for key in store.cell_keys():
        killed_rows, whole = (comparable(tmp_path / name, key) for name in ("killed", "whole"))
        for rows in (killed_rows, whole):
            for row in rows.values():
                row.pop("commit")
        assert killed_rows == whole


@pytest.mark.slow
def test_two_processes_on_one_store_never_run_a_sample_twice(tmp_path):
    sweeps = [start(tmp_path, "method=full,retroinfer,quest") for _ in range(2)]
    outputs = [process.communicate(timeout=600) for process in sweeps]
    again = start(tmp_path, "method=full,retroinfer,quest")
    text, _ = again.communicate(timeout=600)
    counts = rows_of(tmp_path)
    assert set(counts.values()) == {1} and len(counts) == 6, outputs
    assert again.returncode == 0 and text.count("0 samples run, 2 on disk") == 3


@pytest.mark.slow
@pytest.mark.parametrize("launcher", ["joblib", "submitit_local"])
def test_launchers_of_other_processes(launcher, tmp_path):
    pytest.importorskip(f"hydra_plugins.hydra_{launcher.removesuffix('_local')}_launcher")
    options = [f"hydra/launcher={launcher}", f"hydra.sweep.dir={tmp_path}/sweep"]
    if launcher == "joblib":
        options.append("hydra.launcher.n_jobs=2")
    process = start(tmp_path / "runs", "method=full,retroinfer", *options)
    text, errors = process.communicate(timeout=600)
    assert process.returncode == 0, errors
    assert text.count("2 samples run") == 2 and text.count("scores (x100)") == 1
    assert set(rows_of(tmp_path / "runs").values()) == {1}
    threads = {
        ResultStore(tmp_path / "runs").cell(key)["provenance"]["threads"]
        for key in ResultStore(tmp_path / "runs").cell_keys()
    }
    assert threads == {1}


def test_a_sweep_raises_the_alarms_from_the_command_line(tmp_path, monkeypatch, capsys):
    """Weights that look at everything a little: attending less truly answers better."""
    from retrobench.cli import console
    from retrobench.engine.embedded import build_tokenizer, constructed

    for strength, value in (("MATCH_LOGIT", 3.7), ("VALUE_LOGIT", 0.0)):
        monkeypatch.setattr(constructed, strength, value)
    tokenizer = build_tokenizer()
    for part in (constructed.build(tokenizer), tokenizer):
        part.save_pretrained(tmp_path / "vague")
    options = ["model=local", "model.name=vague", f"model.path={tmp_path}/vague", "budget=6%,90%"]
    options += ["task.length=500", "task.samples=12", "method=full,oracle_topk"]
    options.append("method_options.oracle_topk.local_tokens=12")
    runs = tmp_path / "runs"
    process = start(runs, *options)
    text, errors = process.communicate(timeout=600)
    assert process.returncode == 0, errors
    store = ResultStore(runs)
    budgets = {store.cell(key)["cell"]["budget"]: key[:6] for key in store.cell_keys()}
    assert set(budgets) == {None, "6%", "90%"}  # full attention has no budget
    report = tmp_path / "report.html"
    assert console.main(["table", "--results", str(runs)]) == 0
    table = capsys.readouterr().out
    assert console.main(["report", "--results", str(runs), "--out", str(report)]) == 0
    for shown in (text, table, report.read_text()):
        lines = [line for line in shown.splitlines() if "ALARM" in line]
        alarms = [part for line in lines for part in line.split("<p ") if "ALARM" in part]
        assert len(alarms) == 2, alarms
        assert f"oracle_topk {budgets['6%']}" in alarms[0] and "beats full" in alarms[0]
        assert budgets["90%"] in alarms[1] and budgets["6%"] in alarms[1]
        assert "a larger budget answers worse" in alarms[1]


def test_a_graph_that_cannot_be_is_refused_before_anything_runs(tmp_path):
    refused, run = sweep(
        tmp_path, [{"name": "quest"}, {"name": "full"}], engine={"executor": "graph"}
    )
    assert isinstance(refused, ValueError) and "method=quest needs the host" in str(refused)
    assert run["failed"] == {}
    rows = ResultStore(tmp_path).read(run["key"]).rows.values()
    assert {row["executor"] for row in rows} == {"graph"}
    eager = cli.run_job(config(tmp_path, method={"name": "full"}))
    assert eager["key"] != run["key"]
    again = ResultStore(tmp_path).read(eager["key"]).rows
    for row in rows:
        assert again[row["sample"]]["prediction"] == row["prediction"]


def test_a_cell_known_from_another_folder_joins_its_group(tmp_path):
    """What is remembered of a run must not tell where its results went."""
    cli.run_job(config(tmp_path / "elsewhere", method={"name": "full"}))
    raws = [config(tmp_path / "here", method={"name": name}) for name in ("full", "oracle_topk")]
    first, second = (entry.group for entry in cli.plan_runs(raws))
    assert first == second != ""
