"""A finished cell whose files were damaged or edited is made good, and said to have been."""

from __future__ import annotations

import json

import pytest

from retrobench.cli import app as cli
from retrobench.cli import console
from retrobench.core.cell import digest
from retrobench.store.results import ResultStore
from retrobench.store.row_file import RowWriter
from tests.e2e.runs import config

TASK = {"name": "ruler", "tasks": ["niah_single_2"], "length": 600, "samples": 3}


def job(results):
    return cli.run_job(config(results, method={"name": "full"}, task=TASK))


def write_rows(path, rows):
    with path.open("w") as stream:
        for row in rows:
            RowWriter(stream).append(row)


@pytest.mark.parametrize(
    ("name", "damage", "ran"),
    [
        ("rows.jsonl", lambda path: path.write_text(""), 3),
        ("rows.jsonl", lambda path: path.unlink(), 3),
        ("rows.jsonl", lambda path: path.write_bytes(path.read_bytes()[:-400]), 1),
        ("rows.jsonl", lambda path: path.write_bytes(b"x" + path.read_bytes()[1:]), 1),
        ("rows.jsonl", lambda path: path.write_bytes(path.read_bytes().replace(b"ok", b"no")), 3),
        ("status.json", lambda path: path.write_text(""), 0),
        ("status.json", lambda path: path.write_text("[1]"), 0),
        ("cell.json", lambda path: path.write_text("{}"), 0),
        ("cell.json", lambda path: path.unlink(), 0),
    ],
)
def test_what_is_missing_runs_again(tmp_path, capfd, name, damage, ran):
    key = job(tmp_path)["key"]
    damage(tmp_path / key / name)
    outcome = job(tmp_path)
    assert (outcome["ran"], outcome["cached"], outcome["failed"]) == (ran, 3 - ran, {})
    said = capfd.readouterr().err
    assert key in said
    assert job(tmp_path)["ran"] == 0 and key not in capfd.readouterr().err
    store = ResultStore(tmp_path)
    assert store.problems() == [] and len(store.columns()) == 3
    assert store.columns()["score"].mean() == 1


def test_edits_with_right_digests_are_found_by_scoring_and_running_again(tmp_path, capsys):
    key = job(tmp_path)["key"]
    path, where = tmp_path / key / "rows.jsonl", ["--results", str(tmp_path)]
    store = ResultStore(tmp_path)
    rows = list(store.read(key).rows.values())
    assert console.main(["audit", *where]) == 0
    assert console.main(["verify", key, "--samples", "3", *where]) == 0
    write_rows(path, [{**rows[0], "score": 0.5}, *rows[1:]])
    store.set_status(key, store.status(key))  # even the hash of the whole file is right
    capsys.readouterr()
    assert console.main(["audit", *where]) == 1
    assert "1 of 3 scores are not those of the answers" in capsys.readouterr().out
    swapped = [{**rows[0], "prediction": rows[1]["prediction"]}, *rows[1:]]
    write_rows(path, swapped)
    store.set_status(key, store.status(key))
    assert console.main(["audit", *where]) == 1
    assert f"first: {rows[0]['sample']}: 1, its answer has 0" in capsys.readouterr().out
    assert console.main(["verify", key, "--samples", "3", *where]) == 1
    assert f"{rows[0]['sample']}: prediction" in capsys.readouterr().out


def test_verify_draws_its_samples(tmp_path, capsys):
    key, where = job(tmp_path)["key"], ["--results", str(tmp_path)]
    drawn = set()
    for seed in range(8):
        asked = ["verify", key, "--samples", "1", "--seed", str(seed), *where]
        capsys.readouterr()
        assert console.main(asked) == 0
        drawn.update(json.loads(capsys.readouterr().out)["samples"])
    assert len(drawn) == 3
    for count in ("0", "-1"):
        with pytest.raises(SystemExit, match="2"):
            console.main(["verify", key, "--samples", count, *where])


def test_a_cell_with_an_edited_description_is_not_verified(tmp_path, capsys):
    key = job(tmp_path)["key"]
    path = tmp_path / key / "cell.json"
    about = json.loads(path.read_text())
    about["cell"]["method"]["name"] = "quest"
    about.pop("digest")
    path.write_text(json.dumps({**about, "digest": digest(about)}))
    with pytest.raises(SystemExit, match="2"):
        console.main(["verify", key, "--results", str(tmp_path)])
    assert "cell.json: its cell is not the one of key" in capsys.readouterr().err
