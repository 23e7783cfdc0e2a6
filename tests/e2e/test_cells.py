"""How one cell ends: quarantined, busy elsewhere, run again for a receipt."""

from __future__ import annotations

import json

import pytest

from retrobench.cli import app as cli
from retrobench.store.results import ResultStore
from tests.e2e.runs import config


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
    with pytest.raises(SystemExit):  # no line is what its digest says
        console.main(["verify", key, *where])
    assert "no answered sample" in capsys.readouterr().err
    changed = [{k: v for k, v in r.items() if k != "digest"} | {"score": 0.5} for r in lines]
    path.write_text("".join(json.dumps(row) + "\n" for row in changed))
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
    assert not cli.is_failure(outcome)
    assert cli.problem_line(outcome).startswith(f"BUSY {done['key']}")
    ran = {**done, "ran": 3}
    assert cli.without_duplicates([outcome, ran]) == [ran]  # two entries of one launch, one cell
    assert cli.without_duplicates([outcome, {**ran, "key": "other"}])[0] is outcome
