"""Sweeps of a results folder: which cells a sweep asked for, and how they ended."""

from __future__ import annotations

import json
from typing import Any

from retrobench.store.results import ResultStore

CELLS_FILE = "cells.jsonl"  # one line per job of a launch


def sweep_names(store: ResultStore) -> list[str]:
    """Names of all sweeps, sorted."""
    return sorted({path.parent.parent.name for path in _files(store, "*")})


def sweep_entries(store: ResultStore, name: str) -> list[dict[str, Any]]:
    """The newest entry of every job of a sweep; ValueError if there is no such sweep."""
    newest: dict[str, dict[str, Any]] = {}
    for path in _files(store, name):
        for line in path.read_text(encoding="utf-8").splitlines():
            entry = json.loads(line)
            newest[entry.get("key") or entry["job"]] = entry
    if not newest:
        known = ", ".join(sweep_names(store)) or "none"
        raise ValueError(f"{name}: no such sweep in {store.root}. Sweeps: {known}")
    return list(newest.values())


def sweep_keys(store: ResultStore, name: str) -> list[str]:
    """Keys of the cells of a sweep, in the order they were asked for."""
    return [entry["key"] for entry in sweep_entries(store, name) if "key" in entry]


def _files(store: ResultStore, name: str) -> list[Any]:
    return sorted((store.root / "sweeps").glob(f"{name}/*/{CELLS_FILE}"))
