"""The ``retrobench`` command: scores predictions and reads results on disk."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from rich.console import Console

from retrobench import cli
from retrobench.store.results import ResultStore


def main(arguments: list[str] | None = None) -> int:
    """Exit code: 0, 1 if something was reported as bad, 2 for a usage error."""
    parser = _parser()
    options = parser.parse_args(arguments)
    try:
        return options.run(options)
    except (ValueError, FileNotFoundError) as error:
        cli.fail(error)
        return 2


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="retrobench", description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    score = commands.add_parser("score", help="score predictions with the benchmarks' own scorers")
    score.add_argument("cases", type=Path, help="jsonl: benchmark, task, prediction, references")
    score.add_argument("--out", type=Path, help="write every line back with `ours` in [0, 1]")
    score.set_defaults(run=_score)

    for name, function, text in (
        ("ls", _ls, "list the cells of a results folder"),
        ("table", _table, "scores and costs of cells"),
        ("show", _show, "what a cell is and how it ended"),
        ("why", _why, "field-level difference between two cells"),
        ("export", _export, "rows as csv or parquet"),
        ("audit", _audit, "cells of one table whose prompts or rules differ"),
    ):
        command = commands.add_parser(name, help=text)
        command.add_argument("--results", default="results/runs", help="results folder")
        if name in {"show", "why"}:
            command.add_argument("key", help="cell key, or its beginning")
        if name == "why":
            command.add_argument("other", help="the other cell")
        if name in {"table", "export", "audit"}:
            command.add_argument("keys", nargs="*", help="cells; none: all")
        if name == "export":
            command.add_argument("--out", type=Path, required=True, help="FILE.csv or FILE.parquet")
        command.set_defaults(run=function)
    return parser


def _score(options: argparse.Namespace) -> int:
    from retrobench.tasks.scoring import score_file

    report = score_file(options.cases, options.out)
    console = Console()
    for line, message in report.errors:
        console.print(f"line {line}: {message}", markup=False, highlight=False)
    for (benchmark, task), (count, mean) in sorted(report.means.items()):
        console.print(f"{benchmark}/{task}: {count} cases, mean {100 * mean:.2f}", highlight=False)
    if report.max_difference is not None:
        text = f"largest difference to the given scores: {report.max_difference:.3g}"
        console.print(text, highlight=False)
    return 1 if report.errors else 0


def _ls(options: argparse.Namespace) -> int:
    store, console = ResultStore(options.results), Console()
    for key in store.cell_keys():
        labels, status = store.cell(key)["labels"], store.status(key)
        words = " ".join(str(value) for value in labels.values() if value is not None)
        console.print(f"{key} {status.get('state')} {words}", highlight=False, markup=False)
    return 0


def _table(options: argparse.Namespace) -> int:
    from retrobench.report.table import COLUMNS, print_tables

    store = ResultStore(options.results)
    keys = [find(store, key) for key in options.keys] or store.cell_keys()
    if not keys:
        raise ValueError(f"{options.results} holds no cells; run `python run.py` first")
    print_tables(store.columns(COLUMNS, keys), Console())
    return 0


def _show(options: argparse.Namespace) -> int:
    store = ResultStore(options.results)
    key = find(store, options.key)
    Console().print_json(data={**store.cell(key), "status": store.status(key)})
    return 0


def _why(options: argparse.Namespace) -> int:
    from retrobench.core.cell import Cell

    store = ResultStore(options.results)
    ours, theirs = (store.cell(find(store, key))["cell"] for key in (options.key, options.other))
    differences = Cell(**{**ours, "measure": tuple(ours["measure"])}).why(theirs)
    Console().print("\n".join(differences) or "no difference", markup=False, highlight=False)
    return 0


def _export(options: argparse.Namespace) -> int:
    store = ResultStore(options.results)
    frame = store.frame([find(store, key) for key in options.keys] or None)
    if options.out.suffix == ".csv":
        frame.to_csv(options.out, index=False)
    elif options.out.suffix == ".parquet":
        frame.to_parquet(options.out)
    else:
        raise ValueError(f"--out {options.out}: write .csv or .parquet")
    return 0


def _audit(options: argparse.Namespace) -> int:
    from retrobench.report.audit import audit

    store = ResultStore(options.results)
    keys = [find(store, key) for key in options.keys] or store.cell_keys()
    findings = audit(store, keys)
    Console().print("\n".join(findings) or f"{len(keys)} cells agree", markup=False)
    return 1 if findings else 0


def find(store: ResultStore, prefix: str) -> str:
    """The one key that begins with ``prefix``; ValueError if none or several do."""
    matches = [key for key in store.cell_keys() if key.startswith(prefix)]
    if len(matches) != 1:
        what = f"{len(matches)} cells begin so" if matches else "no such cell"
        raise ValueError(f"{prefix}: {what} in {store.root}; `retrobench ls` lists them")
    return matches[0]


if __name__ == "__main__":
    sys.exit(main())
