"""Tables are as wide as the terminal at most: what does not fit is left out by worth, and named."""

import io

import pytest
from rich.console import Console

from retrobench.cli import app
from retrobench.report.tables.layout import KEPT, LEAST_WORTH, print_table
from retrobench.report.tables.overview import COLUMNS, print_tables

SPEED = "method key backend ms/step quartiles tok/s MB/step GB/s".split()
LINES = [["retroinfer", "3ccbf4", "cpu", "1.17", "0.948-8.92", "856.7", "2.2", "1.9 of 10.6"]] * 2


def printed(columns, rows, width):
    console = Console(width=width, file=io.StringIO())
    print_table(console, "title", columns, rows, left=("method",))
    return console.file.getvalue()


def table_lines(text):
    return [line for line in text.splitlines() if line[:1] in "┏┃┡│└"]


@pytest.mark.parametrize("width", [36, 45, 60, 80, 120])
def test_columns_go_by_worth_and_are_named(width):
    text = printed(SPEED, LINES, width)
    assert all(len(line) <= width for line in table_lines(text))
    head = next(line for line in text.splitlines() if line.startswith("┃"))
    shown = [cell.strip() for cell in head.strip("┃").split("┃")]
    gone = [name for name in SPEED if name not in shown]
    assert {"method", "key", "ms/step"} <= set(shown)
    by_worth = [name for name in LEAST_WORTH if name in SPEED]
    assert set(gone) == set(by_worth[: len(gone)])
    assert ("left out to fit" in text) == bool(gone)
    for name in gone:
        assert name in text.splitlines()[-1]
    assert "retroinfer" in text  # in one piece


def test_what_identifies_a_line_stays():
    assert not KEPT & set(LEAST_WORTH)


def test_task_columns_go_from_the_right_where_turning_does_not_help():
    tasks = [f"task_{n:02}" for n in range(20)]
    rows = [[f"method_{n:02}", *["100.0"] * 20, "99.9"] for n in range(30)]
    text = printed(["method", *tasks, "avg"], rows, 60)
    assert all(len(line) <= 60 for line in table_lines(text))
    assert text.count("99.9") == 30 and "task_19" in text.splitlines()[-1]
    assert "task_00" in text.splitlines()[2]


def test_a_pipe_has_the_width_of_columns(monkeypatch):
    for given, width in (("80", 80), ("133", 133), ("", 160), ("wide", 160)):
        monkeypatch.setenv("COLUMNS", given)
        assert app.console().width == width
    monkeypatch.delenv("COLUMNS")
    assert app.console().width == 160


@pytest.mark.parametrize("width", [80, 100, 160])
def test_every_table_of_a_sweep_fits(lab, width):
    names = [f"niah_multikey_{n}" for n in (1, 2, 3)]
    for method in ("full", "quest", "retroinfer"):
        rows = [lab.row(name, sample, 1.0) for name in names for sample in range(2)]
        lab.cell(method, rows=rows)
    console = Console(width=width, file=io.StringIO())
    print_tables(lab.store.columns(COLUMNS), console)
    text = console.file.getvalue()
    assert all(len(line) <= width for line in table_lines(text))
    for method in ("full", "quest", "retroinfer"):
        assert method in text
