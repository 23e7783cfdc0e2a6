"""``retrobench board``: one leaderboard from the rows of several results folders."""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from retrobench.cli import app
from retrobench.core.paths import check_output
from retrobench.core.spec import unknown

if TYPE_CHECKING:
    from retrobench.report.board.merge import Merged

AXES = ("tokens", "hbm", "pcie", "memory", "time")


def add(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """The sub-command's options."""
    text = "rank the methods of several results folders by score and cost"
    command = commands.add_parser("board", help=text, description=text)
    command.add_argument("folders", nargs="+", metavar="FOLDER", help="results folders")
    command.add_argument("--axis", default="tokens", help=f"cost to rank by: {', '.join(AXES)}")
    command.add_argument("--split", action="store_true", help="a table per sub-task and length")
    command.add_argument("--out", type=Path, help="FILE.html: also write the report page")
    command.add_argument("--merge", type=Path, help="keep the merged cells as a results folder")
    command.set_defaults(run=_run)


def _run(options: argparse.Namespace) -> int:
    """Print the board; exit code 1 if files are damaged or a score was not confirmed."""
    from retrobench.report.board.merge import merge

    if options.axis not in AXES:
        raise unknown(f"--axis {options.axis}", "axis", AXES)
    for folder in options.folders:
        if not Path(folder).is_dir():
            raise ValueError(f"{folder}: no such folder; name results folders (results/runs)")
    if options.out is not None:
        check_output("--out", options.out)
    with tempfile.TemporaryDirectory(prefix="retrobench-") as folder:
        merged = merge(options.folders, options.merge or Path(folder))
        return _show(options, merged)


def _show(options: argparse.Namespace, merged: Merged) -> int:
    from retrobench.report.board.tables import NOTE, board, sources
    from retrobench.report.tables.labels import LABELS
    from retrobench.report.tables.layout import print_line, print_table

    console, found = app.console(), list(board(merged, options.axis, options.split))
    left = [*LABELS, "batch", "verified", "flags", "source"]
    for title, table in found:
        rows = table.itertuples(index=False)
        print_table(console, f"{title}: by {options.axis}", list(table.columns), rows, left)
    for line in sources(merged):
        print_line(console, line)
    print_line(console, NOTE, "dim")
    app.complain(merged.problems)
    if options.out is not None:
        from retrobench.report.page.html import write_report
        from retrobench.report.page.tables import plain_table

        note = "\n".join([*sources(merged), NOTE])
        tables = [plain_table(f"Leaderboard: {title}", table, note) for title, table in found]
        keys = merged.store.cell_keys()
        path = write_report(merged.store, keys, "retrobench: leaderboard", options.out, tables)
        print_line(console, f"written: {path}")
    doubted = any("not confirmed" in flag for own in merged.flags.values() for flag in own)
    return 1 if merged.problems or doubted else 0
