"""Rows survive crashes, torn lines and rivals."""

from __future__ import annotations

import signal
import subprocess
import sys

import pytest

from retrobench.core.cell import Cell
from retrobench.store.results import Locked, ResultStore

CELL = Cell(model={"name": "m"}, method={"name": "full"}, task={"name": "t"})
FACTS = {"labels": {"model": "m", "method": "full", "benchmark": "t"}}


def row(sample, status="ok"):
    return {"sample": sample, "status": status, "score": 1.0}


def write(store, *rows):
    with store.writer(CELL, FACTS) as writer:
        for entry in rows:
            writer.append(entry)


def test_rows_come_back_newest_first_choice(tmp_path):
    store = ResultStore(tmp_path)
    write(store, row("a"), row("b", "oom"))
    write(store, row("b"))
    rows = store.read(CELL.key)
    assert set(rows.rows) == {"a", "b"} and rows.rows["b"]["status"] == "ok"
    assert rows.settled() == {"a", "b"}
    assert set(store.columns()["method"]) == {"full"}


def test_failures_are_tried_again_three_times(tmp_path):
    store = ResultStore(tmp_path)
    for attempt in range(3):
        assert "a" not in store.read(CELL.key).settled(), attempt
        write(store, row("a", "error"))
    assert "a" in store.read(CELL.key).settled()


def test_a_torn_last_line_is_skipped_and_counted(tmp_path):
    store = ResultStore(tmp_path)
    write(store, row("a"))
    with (tmp_path / CELL.key / "rows.jsonl").open("a") as stream:
        stream.write('{"sample": "b", "sta')
    assert len(store.read(CELL.key).damaged) == 1
    write(store, row("c"))
    rows = store.read(CELL.key)
    assert set(rows.rows) == {"a", "c"} and len(rows.damaged) == 1


def test_two_writers_exclude_each_other(tmp_path):
    store = ResultStore(tmp_path)
    with store.writer(CELL, FACTS), pytest.raises(Locked), store.writer(CELL, FACTS):
        pass
    write(store, row("a"))


def test_nan_is_refused(tmp_path):
    with pytest.raises(ValueError):
        write(ResultStore(tmp_path), {**row("a"), "score": float("nan")})


def test_an_unwritable_folder_is_named(tmp_path):
    blocker = tmp_path / "file"
    blocker.touch()
    with pytest.raises(ValueError, match=r"results_dir=.*cannot be written"):
        ResultStore(blocker / "runs").prepare()


def test_sigkill_loses_no_written_row(tmp_path):
    code = f"import sys\nsys.path[:0] = {sys.path!r}\n" + CHILD
    child = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE)
    assert child.stdout is not None
    seen = [child.stdout.readline().strip() for _ in range(20)]
    child.send_signal(signal.SIGKILL)
    child.wait()
    rows = ResultStore(tmp_path).read(CELL.key)
    assert {line.decode() for line in seen} <= set(rows.rows)
    write(ResultStore(tmp_path), row("after"))  # the dead writer's lock is gone


CHILD = """
from retrobench.core.cell import Cell
from retrobench.store.results import ResultStore
cell = Cell(model={"name": "m"}, method={"name": "full"}, task={"name": "t"})
with ResultStore(sys.argv[1]).writer(cell, {"labels": {}}) as writer:
    for i in range(100000):
        writer.append({"sample": str(i), "status": "ok", "score": 1.0})
        print(i, flush=True)
"""
