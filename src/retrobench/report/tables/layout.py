"""How tables are written: number formats, columns of a terminal table, plain lines."""

from collections.abc import Iterable, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text


def number(value: Any, form: str) -> str:
    """A number in a format (``.2f``); empty where it is missing (None or NaN)."""
    return "" if value is None or value != value else f"{value:{form}}"


def rich_table(
    title: str, columns: Sequence[str], rows: Iterable[Sequence[Any]], left: Iterable[str]
) -> Table:
    """A table whose columns are right-aligned, except those named in ``left``."""
    table, left = Table(title=Text(title, "table.title")), set(left)
    for column in columns:
        table.add_column(
            Text(column), justify="left" if column in left else "right", overflow="fold"
        )
    for row in rows:
        table.add_row(*(Text(str(value)) for value in row))
    return table


def print_line(console: Console, text: str, style: str | None = None) -> None:
    """A line as it stands: no markup, no colours by content, no wrapping of our own."""
    console.print(text, style=style, markup=False, highlight=False, soft_wrap=True)
