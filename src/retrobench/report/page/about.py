"""What the page says beside numbers: a card per method, the cells, where rows come from."""

import ast
import json
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pandas as pd

from retrobench.core.registry import method_source
from retrobench.report.figures.style import ordered
from retrobench.report.page.tables import Table, plain_table
from retrobench.store.results import ResultStore
from retrobench.store.row_file import OK


def method_cards(frame: pd.DataFrame, cells: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """For every method: what it is, its options and budgets, and how its rows ended."""
    found = []
    for name in ordered(frame["method"].unique()):
        rows = frame[frame["method"] == name]
        own = [about["cell"] for about in cells if about["labels"].get("method") == name]
        options: dict[str, dict[str, None]] = {}
        for cell in own:
            for option, value in cell["method"].items():
                if option != "name":
                    options.setdefault(option, {})[json.dumps(value)] = None
        budgets = dict.fromkeys(str(cell.get("budget") or "default") for cell in own)
        statuses = rows["status"].value_counts().to_dict()
        found.append(
            {
                "name": name,
                "text": _description(name),
                "budgets": list(budgets),
                "options": {option: list(values) for option, values in sorted(options.items())},
                "cells": len(own),
                "rows": len(rows),
                "failed": {k: v for k, v in statuses.items() if k != OK},
                "code": sorted(set(rows["code"].dropna().astype(str))),
            }
        )
    return found


def _description(method: str) -> str:
    """The first paragraph of the method's module, which is not imported; empty if not installed."""
    source = method_source(method)
    try:
        spec = find_spec(source.partition(":")[0]) if source else None
        text = Path(spec.origin).read_text(encoding="utf-8") if spec and spec.origin else ""
        document = ast.get_docstring(ast.parse(text)) or ""
    except (ImportError, OSError, SyntaxError):
        return ""
    return " ".join(document.partition("\n\n")[0].split())


def provenance(cells: Sequence[dict[str, Any]]) -> Table:
    """Machines, versions and commits that the cells were made with: a row per combination."""
    lines: dict[str, dict[str, Any]] = {}
    for about in cells:
        own = about.get("provenance", {})
        line = {name: own.get(name) for name in ("cpu", "cores", "threads", "gpu", "python")}
        line |= own.get("versions", {})
        line |= {"commit": str(own.get("commit"))[:12], "uncommitted changes": own.get("dirty")}
        lines.setdefault(str(line), {**line, "cells": 0})["cells"] += 1
    table = pd.DataFrame(list(lines.values()))
    return plain_table("Machines, versions, commits", table)


def cell_table(store: ResultStore, cells: Sequence[dict[str, Any]]) -> Table:
    """Every cell with its labels and how it ended."""
    frame = store.cells()
    frame = frame[frame["key"].isin([about["key"] for about in cells])].dropna(axis=1, how="all")
    return plain_table("Cells", frame.rename(columns={"model": "of model"}))


def options(cells: Sequence[dict[str, Any]]) -> list[tuple[str, str]]:
    """(key and names, everything that decides the cell as JSON) of every cell."""
    found = []
    for about in cells:
        names = " ".join(str(value) for value in about["labels"].values() if value)
        notes = {"notes": about["notes"]} if about.get("notes") else {}
        text = json.dumps({**about["cell"], **notes}, indent=1, ensure_ascii=False)
        found.append((f"{about['key']} {names}", text))
    return found
