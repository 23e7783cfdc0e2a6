"""How tables are written: number formats, tables that fit the terminal, plain lines."""

from collections.abc import Iterable, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

# What a table that is too wide goes without, the least worth first; then the rightmost columns.
LEAST_WORTH = (
    "memory", "$/Mtok",
    "quartiles", "MB held", "pinned", "host", "device", "weights", "GB/s", "hidden", "build s",
    "prefill by", "prefill s", "prefill tok/s", "prefill frac", "mass estimated", "mass true",
    "in ignored", "in estimated", "in exact", "p95", "p5", "top 100", "overlap", "estimated", "hit",
    "hit ratio", "MiB held", "tok/s", "MB/step", "MiB/step", "compared", "sparse layers", "batch",
    "backend", "attended", "update %",
)  # fmt: skip
KEPT = frozenset("cell key state model method changed budget protocol context avg case us".split())
KEPT |= {"ms/step", "vs full", "option", "level", "effect", "status", "recall", "error", ""}
KEPT |= {"hardware", "rate", "TTFT s", "TPOT ms", "good"}
HEADS = ("method", "key", "context")  # of a turned table, which has a column per row


def number(value: Any, form: str) -> str:
    """A number in a format (``.2f``); empty where it is missing (None or NaN)."""
    return "" if value is None or value != value else f"{value:{form}}"


def print_table(
    console: Console,
    title: str,
    columns: Sequence[str],
    rows: Iterable[Sequence[Any]],
    left: Iterable[str],
) -> None:
    """Print a table that fits the console; columns are right-aligned but for those in ``left``.

    Where it is too wide, columns of little worth are left out. If that is not enough, it is turned
    (a column per row), or else more columns go from the right. A line names what was left out.
    """
    columns, rows, left = list(columns), [list(row) for row in rows], {*left, ""}
    whole = table = _table(title, columns, rows, left)
    expendable = [columns.index(name) for name in LEAST_WORTH if name in columns]
    others = [n for n, name in enumerate(columns) if name not in KEPT and n not in expendable]
    turned = _table(title, *_turned(columns, rows), left)
    dropped: list[int] = []
    for index in [*expendable, *reversed(others)]:
        if _width(table, console) <= console.width:
            break
        if index not in expendable and _width(turned, console) <= console.width:
            table, dropped = turned, []
            break
        dropped.append(index)
        kept = [n for n in range(len(columns)) if n not in dropped]
        lines = [[row[n] for n in kept] for row in rows]
        table = _table(title, [columns[n] for n in kept], lines, left)
    console.print(table)
    if dropped:
        names = ", ".join(columns[n].replace("\n", " ") for n in sorted(dropped))
        text = f"left out to fit {console.width} columns ({_width(whole, console)} hold all)"
        print_line(console, f"{text}: {names}", "dim")


def _table(title: str, columns: Sequence[str], rows: Sequence[Sequence[Any]], left: set[str]):
    table = Table(title=Text(title, "table.title"))
    for column in columns:
        justify = "left" if column in left else "right"
        table.add_column(Text(column), justify=justify, overflow="fold")
    for row in rows:
        table.add_row(*(Text(str(value)) for value in row))
    return table


def _turned(columns: list[str], rows: list[list[Any]]) -> tuple[list[str], list[list[Any]]]:
    heads = [columns.index(name) for name in HEADS if name in columns]
    names = ["\n".join(str(row[n]) for n in heads) for row in rows]
    rest = [n for n in range(len(columns)) if n not in heads]
    return ["", *names], [[columns[n], *(row[n] for row in rows)] for n in rest]


def _width(table: Table, console: Console) -> int:
    """Columns that a table takes without folding any text."""
    return console.measure(table, options=console.options.update(width=10_000)).maximum


def print_line(console: Console, text: str, style: str | None = None) -> None:
    """A line as it stands: no markup, no colours by content, no wrapping of our own."""
    console.print(text, style=style, markup=False, highlight=False, soft_wrap=True)
