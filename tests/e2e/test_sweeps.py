"""Sweeps as a cluster runs them: planned first, spread over processes, never run twice."""

from __future__ import annotations

import re
import signal
import time

import pytest

from retrobench.cli import app as cli
from retrobench.store.results import ResultStore
from tests.e2e.runs import comparable, config, rows_of, start


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
    nowhere = [config(tmp_path, method={"name": name}) for name in ("full", "quest")]
    nowhere = [{**one, "model": {"name": "", "source": "local"}} for one in nowhere]
    assert cli.show_plan(cli.plan_runs(nowhere)) == 1
    (reason,) = [line for line in capsys.readouterr().out.splitlines() if "impossible:" in line]
    assert reason.startswith("impossible: local full ruler, local quest ruler: model=local needs")
    axes = [config(tmp_path, match=axis, reference="quest@5%") for axis in ("tokens", "hbm")]
    assert (
        cli.show_plan(cli.plan_runs(axes)) == 0
    )  # both start from the cell on disk, and each ends in its own
    assert "2 cells: 2 run; 4 samples" in capsys.readouterr().out


def test_units_keep_what_shares_together_and_give_every_worker_one(tmp_path):
    from retrobench.cli import units

    groups = ["a", "b", "a", "", "a", "", "b"]
    units.write(tmp_path, groups, list("0123456"), [{"n": n} for n in range(7)], 1)
    assert [units.find(tmp_path, n).jobs for n in range(7)] == [
        (0, 2, 4), (1, 6), (0, 2, 4), (3,), (0, 2, 4), (5,), (1, 6),
    ]  # fmt: skip
    assert units.find(tmp_path, 2).jobs[0] == 0 and units.find(tmp_path, 1).configs[1] == {"n": 6}
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


@pytest.mark.slow
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
        alarms = re.findall(r'<p class="alarm">(.*?)</p>', shown) or lines
        assert len(alarms) == 2, alarms
        assert f"oracle_topk {budgets['6%']}" in alarms[0] and "beats full" in alarms[0]
        assert budgets["90%"] in alarms[1] and budgets["6%"] in alarms[1]
        assert "a larger budget answers worse" in alarms[1]


@pytest.mark.slow
def test_a_sweep_can_be_followed_to_its_end(tmp_path):
    from retrobench.report.page.serve import progress

    sweep = start(tmp_path, "method=full,quest", "sweep=two")
    out, err = sweep.communicate(timeout=600)
    assert sweep.returncode == 0, err
    found = progress(ResultStore(tmp_path), "two")
    assert (found["done"], found["total"]) == (4, 4)
    assert "4 of 4 samples, 2 of 2 cells ended; newest row" in found["text"]
