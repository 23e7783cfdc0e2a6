"""Sweeps of a results folder: which cells a sweep asked for, and how they ended."""

import json
import re
from pathlib import Path
from typing import Any

from retrobench.core.paths import regular
from retrobench.store.results import ResultStore

CELLS_FILE = "cells.jsonl"  # one line per job of a launch
PLAN_FILE = "plan.json"  # what a launch set out to run
_KINDS = {"key": str, "job": str, "error": str, "label": str, "failed": dict, "ran": int}


def check_name(name: Any) -> None:
    """ValueError for a sweep's name that is no name of a folder: it must stay where sweeps are."""
    fine = isinstance(name, (str, int)) and not isinstance(name, bool)
    if not fine or not re.fullmatch(r"[^./\\\0\s,][^/\\\0\r\n,]{0,199}", str(name)):
        raise ValueError(
            f"sweep={name!r}: write a name of up to 200 characters without slashes, commas and a "
            "leading dot"
        )


def sweep_names(store: ResultStore) -> list[str]:
    """Names of all sweeps, sorted."""
    paths = [*_files(store, None, CELLS_FILE), *_files(store, None, PLAN_FILE)]
    return sorted({path.parent.parent.name for path in paths})


def sweep_entries(store: ResultStore, name: str) -> list[dict[str, Any]]:
    """The newest entry of every job of a sweep that ended; ValueError if there is no such sweep."""
    names = sweep_names(store)
    if name not in names:
        known = ", ".join(names) or "none"
        raise ValueError(f"sweep {name!r}: no such sweep in {store.root}. Sweeps: {known}")
    newest: dict[str, dict[str, Any]] = {}
    for path in _files(store, name, CELLS_FILE):
        for entry in read_entries(path)[0]:
            newest[entry.get("key") or entry["job"]] = entry
    return list(newest.values())


def sweep_problems(store: ResultStore, name: str | None = None) -> list[str]:
    """Lines of the lists of a sweep, or of all, that cannot be read: a message for each file."""
    return [line for path in _files(store, name, CELLS_FILE) for line in read_entries(path)[1]]


def sweep_keys(store: ResultStore, name: str) -> list[str]:
    """Keys of the cells of a sweep: those that ended, then those that began; ValueError if none."""
    ended = [entry["key"] for entry in sweep_entries(store, name) if "key" in entry]
    if not (keys := list(dict.fromkeys([*ended, *going(store, name)]))):
        raise ValueError(f"sweep {name!r} of {store.root}: none of its cells has begun")
    return keys


def going(store: ResultStore, name: str) -> list[str]:
    """Keys of the planned cells of a sweep that began and have not ended."""
    ended = {entry.get("key") for entry in sweep_entries(store, name)}
    plans = map(_read_plan, _files(store, name, PLAN_FILE))
    planned = [cell["key"] for plan in plans if plan for cell in plan["cells"] if cell["key"]]
    begun = [key for key in dict.fromkeys(planned) if (store.root / key).is_dir()]
    return [key for key in begun if key not in ended]


def newest_plan(store: ResultStore, name: str | None) -> dict[str, Any] | None:
    """The plan of the newest launch of a sweep, or of all; None without one.

    ``started`` (UTC), ``folder``, and ``cells``: key (empty until it is known), label, and ``todo``
    samples.
    """
    paths = _files(store, name, PLAN_FILE)
    if not paths:
        return None
    return _read_plan(max(paths, key=lambda path: (path.parent.name, path.stat().st_mtime_ns)))


def _read_plan(path: Path) -> dict[str, Any] | None:
    try:
        plan = json.loads(path.read_bytes())
        cells = [{k: cell[k] for k in ("key", "label", "todo")} for cell in plan["cells"]]
        return {"started": str(plan["started"]), "folder": path.parent, "cells": cells}
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None


def read_entries(path: Path) -> tuple[list[dict[str, Any]], list[str]]:
    """Entries of a list of jobs, and what is wrong with the lines that are left out."""
    entries, bad = [], []
    try:
        content = regular(path).read_bytes()
    except (OSError, ValueError) as error:
        return [], [f"{path}: cannot be read ({error}); left out"]
    for number, line in enumerate(content.splitlines(), 1):
        try:
            entry = json.loads(line)
        except (ValueError, RecursionError):
            entry = None
        if isinstance(entry, dict) and _is_entry(entry):
            entries.append(entry)
        else:
            bad.append(number)
    numbers = ", ".join(map(str, bad))
    return entries, [f"{path}: line {numbers}: no entry of a job; left out"] if bad else []


def _is_entry(entry: dict[str, Any]) -> bool:
    if not all(isinstance(entry.get(name, kind()), kind) for name, kind in _KINDS.items()):
        return False
    finished = {"key", "ran", "cached", "failed", "message", "label"} <= entry.keys()
    return finished or {"job", "error"} <= entry.keys()


def _files(store: ResultStore, name: str | None, file: str) -> list[Path]:
    """Files of the launches of the sweep of just this name, or of all sweeps."""
    found = sorted((store.root / "sweeps").glob(f"*/*/{file}"))
    return [path for path in found if name is None or path.parent.parent.name == name]
