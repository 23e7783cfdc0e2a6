"""Damaged and edited files: each is named, the rest is shown, and what is missing is known."""

from __future__ import annotations

import json
import os

import pytest

from retrobench.core.cell import Cell
from retrobench.store import cell_files
from retrobench.store.results import ResultStore
from retrobench.store.sweeps import sweep_entries, sweep_keys, sweep_names, sweep_problems

BAD_JSON = [b"", b"{", b"[]", b"null", b"\xff\xfe", b'{"a": NaN}', b"[" * 100_000]


def write(store, method="full", samples=("a", "b", "c"), **row):
    cell = Cell(model={"name": "m"}, method={"name": method}, task={"name": "t"})
    labels = {"model": "m", "method": method, "benchmark": "t"}
    with store.writer(cell, {"labels": labels}) as writer:
        for sample in samples:
            common = {"status": "ok", "score": 0.25, "prediction": f"of {sample}"}
            writer.append({"sample": sample, **common, **row})
    store.set_status(cell.key, {"state": "done", "requests": ["r"]})
    return cell.key


@pytest.fixture
def store(tmp_path):
    return ResultStore(tmp_path)


def edit(path, old, new):
    """Replace bytes and set the time back, as a careful hand would."""
    about = path.stat()
    content = path.read_bytes()
    assert old in content
    path.write_bytes(content.replace(old, new, 1))
    os.utime(path, ns=(about.st_atime_ns, about.st_mtime_ns))


def test_files_as_a_run_leaves_them_have_no_problems(store):
    key = write(store)
    assert store.problems() == [] and store.is_intact(key) and store.sound_keys() == [key]
    assert store.read(key).unchecked == 0
    assert "digest" not in store.read(key).rows["a"] and "digest" not in store.columns()


@pytest.mark.parametrize("name", ["cell.json", "status.json"])
@pytest.mark.parametrize("content", BAD_JSON)
def test_a_corrupt_file_is_named_and_the_other_cells_are_shown(store, name, content):
    bad, good = write(store), write(store, "quest")
    assert len(store.columns()) == 6
    (store.root / bad / name).write_bytes(content)
    (problem,) = store.problems()
    assert f"{bad}/{name}" in problem
    keys = set(store.columns()["key"])
    assert keys == ({good} if name == "cell.json" else {good, bad})
    assert set(store.sound_keys()) == keys == set(store.cells()["key"])
    assert store.status(bad)["state"] == ("done" if name == "cell.json" else "unreadable")


@pytest.mark.parametrize("value", [[["x"]], -3, True, None])
@pytest.mark.parametrize("name", [*cell_files._STATUS, "nothing"])
def test_a_status_of_other_kinds_is_named_and_its_rows_are_shown(store, name, value):
    key = write(store)
    damaged = json.dumps(store.status(key) | {name: value})
    damaged = "{}" if name == "nothing" else damaged
    (store.root / key / "status.json").write_text(damaged)
    (problem,) = store.problems()
    assert f"{key}/status.json" in problem and store.status(key)["state"] == "unreadable"
    assert len(store.columns()) == 3 and len(store.cells()) == 1


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (b'"method": {\n   "name": "full"', b'"method": {\n   "name": "mine"'),
        (b'"method": "full"', b'"method": "mine"'),
        (b'"protocol": "query_aware"', b'"protocol": "decode_tail:1"'),
        (b'"commit": "c"', b'"commit": "d"'),
    ],
)
def test_an_edited_description_is_not_believed(store, old, new):
    cell = Cell(model={"name": "m"}, method={"name": "full"}, task={"name": "t"})
    about = {"labels": {"method": "full"}, "provenance": {"commit": "c"}}
    with store.writer(cell, about) as writer:
        writer.append({"sample": "a", "status": "ok", "score": 1.0})
    assert len(store.columns()) == 1
    edit(store.root / cell.key / "cell.json", old, new)
    assert store.columns().empty and "cell.json" in store.problems()[0]
    with pytest.raises(ValueError, match=r"cell\.json"):
        store.cell(cell.key)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (b'"score": 0.25', b'"score": 0.95'),  # of the same size
        (b'"score": 0.25', b'"score": 1'),
        (b'"of a"', b'"of b"'),
        (b'"sample": "a"', b'"sample": "z"'),
        (b'"score": 0.25', b'"score":  0.25'),
        (b"}\n{", b"{"),
        (b'"sample": "a"', b'"sample": ["a"]'),
        (b'{"sample"', b'{{"sample"'),
    ],
)
def test_an_edited_row_is_left_out_and_named_although_size_and_time_agree(store, old, new):
    key = write(store)
    assert len(store.columns()) == 3
    edit(store.root / key / "rows.jsonl", old, new)
    assert not store.is_intact(key)
    assert store.columns()["sample"].tolist() == list(store.read(key).rows)
    assert "a" not in store.read(key).rows and set(store.columns()["score"]) == {0.25}
    assert any(f"{key}/rows.jsonl: changed" in line for line in store.problems())
    assert any("damaged line(s) left out (line 1" in line for line in store.problems())


@pytest.mark.parametrize("kept", [[], [0], [0, 2], [2, 1, 0], [0, 0, 1]])
def test_deleted_and_reordered_rows_show(store, kept):
    key = write(store)
    path = store.root / key / "rows.jsonl"
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(lines[i] for i in kept))
    assert store.is_intact(key) is False
    assert f"{key}/rows.jsonl: changed since the cell ended" in store.problems()[0]


def test_an_edit_with_a_digest_of_its_own_shows_too(store):
    key = write(store)
    write(ResultStore(store.root / "other"), score=1.0)
    forged = (store.root / "other" / key / "rows.jsonl").read_bytes()
    (store.root / key / "rows.jsonl").write_bytes(forged)
    assert store.is_intact(key) is False and len(store.problems()) == 1


@pytest.mark.parametrize(
    "fields",
    [
        {"score": "high"},
        {"score": True},
        {"score": 10**400},
        {"decode_s": "1"},
        {"length": [1]},
        {"meta": "none"},
        {"task": 5},
        {"live": {"attended_tokens": "many"}},
        {"status": None},
        {"sample": 1},
    ],
)
def test_rows_of_the_wrong_kind_are_named_and_the_rest_is_shown(store, fields):
    bad, good = write(store), write(store, "quest")
    row = {"sample": "d", "status": "ok", "score": 1.0, **fields}
    with (store.root / bad / "rows.jsonl").open("w") as stream:  # of an older version: no digests
        stream.write(json.dumps(row) + "\n")
        stream.write(json.dumps({"sample": "e", "status": "ok", "score": 1.0}) + "\n")
    frame = store.columns()
    assert dict(frame.groupby("key").size()) == {bad: 1, good: 3}
    assert frame["score"].dtype == float
    assert any(f"{bad}/rows.jsonl" in line and "line 1" in line for line in store.problems())


def test_numbers_of_any_size_in_options_do_not_stop_the_table(store):
    cell = Cell(model={"name": "m"}, method={"name": "full", "x": 10**30}, task={"name": "t"})
    with store.writer(cell, {"labels": {}}) as writer:
        writer.append({"sample": "a", "status": "ok", "score": 1.0})
    write(store)
    assert len(store.columns()) == 4


def test_rows_of_older_versions_are_read_and_counted_as_unchecked(store):
    key = write(store)
    path = store.root / key / "rows.jsonl"
    rows = [json.dumps({**row}) for row in store.read(key).rows.values()]
    path.write_text("\n".join(rows) + "\n")
    (store.root / key / "status.json").write_text('{"state": "done"}')
    assert store.read(key).unchecked == 3 and store.is_intact(key) is None
    assert len(store.columns()) == 3 and store.problems() == []
    write(store, samples=["d"])
    with path.open("a") as stream:
        stream.write(rows[0] + "\n")  # after rows with digests: not an older version's
    assert store.read(key).unchecked == 3 and len(store.read(key).damaged) == 1


def test_lists_of_jobs_lose_their_bad_lines_only(store):
    folder = store.root / "sweeps" / "mine" / "now"
    folder.mkdir(parents=True)
    done = {"key": "k", "ran": 1, "cached": 0, "failed": {}, "message": "", "label": "x"}
    failed = {"job": "x=1", "error": "no"}
    lines = [json.dumps(done), "{", "[]", '{"key": 5}', '{"job": "y"}', "", json.dumps(failed)]
    (folder / "cells.jsonl").write_text("\n".join(lines))
    assert sweep_keys(store, "mine") == ["k"] and len(sweep_entries(store, "mine")) == 2
    assert "cells.jsonl: line 2, 3, 4, 5, 6" in sweep_problems(store)[0]


def test_a_sweep_that_was_stopped_has_the_cells_that_began(store):
    key = write(store)
    folder = store.root / "sweeps" / "mine" / "now"
    folder.mkdir(parents=True)
    cells = [{"key": k, "label": "x", "todo": 3} for k in (key, "", "0" * 16)]
    plan = folder / "plan.json"
    plan.write_text(json.dumps({"started": "2026-12-01T12:00:00Z", "cells": cells}))
    assert sweep_names(store) == ["mine"] and sweep_keys(store, "mine") == [key]
    plan.write_text(json.dumps({"started": "2026-12-01T12:00:00Z", "cells": cells[1:]}))
    with pytest.raises(ValueError, match="'mine'.*none of its cells has begun"):
        sweep_keys(store, "mine")


@pytest.mark.parametrize("name", ["*", "", "m*", "../mine", "[m]ine", "none", ".", "/etc"])
def test_a_sweep_is_found_by_just_its_name(store, name):
    folder = store.root / "sweeps" / "mine" / "now"
    folder.mkdir(parents=True)
    (folder / "cells.jsonl").write_text(json.dumps({"job": "x=1", "error": "no"}))
    assert sweep_names(store) == ["mine"] and sweep_entries(store, "mine")
    with pytest.raises(ValueError, match="no such sweep.*Sweeps: mine"):
        sweep_keys(store, name)


def test_a_damaged_cache_of_columns_is_made_anew(store):
    key = write(store)
    good = store.columns()
    path = store.root / "columns.feather"
    whole = path.read_bytes()
    for place in range(0, len(whole), 211):
        flipped = bytes([whole[place] ^ 1])
        path.write_bytes(whole[:place] + flipped + whole[place + 1 :])
        assert store.columns().equals(good)
        path.write_bytes(whole[:place])
        assert store.columns([*good.columns], [key]).equals(good)
    path.unlink()
    os.mkfifo(path)
    assert store.columns().equals(good) and path.is_file()


@pytest.mark.parametrize("kind", [os.mkfifo, os.mkdir])
@pytest.mark.parametrize("name", ["cell.json", "status.json", "rows.jsonl", ".lock"])
def test_what_is_no_file_is_named_and_never_waited_for(store, name, kind):
    bad, good = write(store), write(store, "quest")
    (store.root / bad / name).unlink()
    kind(store.root / bad / name)
    assert good in set(store.columns()["key"]) and store.sound_keys()
    assert name == ".lock" or any(f"{bad}/" in line for line in store.problems())
    if name in ("rows.jsonl", ".lock"):
        with pytest.raises(ValueError, match=f"{name} is .*put the file itself there"):
            write(store)


@pytest.mark.parametrize("kind", [os.mkfifo, os.mkdir])
def test_a_list_of_jobs_that_is_no_file_is_named(store, kind):
    for name in ("mine", "other"):
        (store.root / "sweeps" / name / "now").mkdir(parents=True)
    kind(store.root / "sweeps" / "mine" / "now" / "cells.jsonl")
    other = store.root / "sweeps" / "other" / "now" / "cells.jsonl"
    other.write_text(json.dumps({"job": "x=1", "error": "no"}))
    assert len(sweep_entries(store, "other")) == 1
    assert "mine/now/cells.jsonl: cannot be read" in sweep_problems(store)[0]
