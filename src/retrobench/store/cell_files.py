"""Reads a cell's files and finds out whether they are what a run wrote.

``cell.json`` must hash to its folder's name and carry a digest of itself. ``status.json`` knows how
long ``rows.jsonl`` was when the cell ended, and its hash. Files of older versions lack the digests:
they are read all the same.
"""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from retrobench.core.cell import digest
from retrobench.core.paths import regular

ROWS = "rows.jsonl"
_LABELS = {"model": "model", "method": "method", "benchmark": "task"}  # label: part of the cell
_AGAIN = "run its command again to write it anew"
_STATUS = {
    "state": str, "message": str, "reason": str, "time": str, "attempts": int, "attempts_of": str,
    "requests": list, "failed": dict, "content": dict, "recovered_lines": int, "altered": int,
}  # fmt: skip


def describe(about: Mapping[str, Any]) -> str:
    """Text of a ``cell.json`` with its digest."""
    plain = json.loads(json.dumps(about))
    return json.dumps({**plain, "digest": digest(plain)}, indent=1)


def read_about(folder: Path) -> dict[str, Any]:
    """What ``cell.json`` says; ValueError naming the file if it is not what a run wrote."""
    path = folder / "cell.json"
    about = _read_object(path)
    kept, cell = about.pop("digest", None), about.get("cell")
    if not isinstance(cell, dict) or digest(cell) != folder.name:
        raise ValueError(f"{path}: its cell is not the one of key {folder.name}; {_AGAIN}")
    if kept is not None and kept != digest(about):
        raise ValueError(f"{path}: changed since it was written; {_AGAIN}")
    labels = about.setdefault("labels", {})
    parts = [labels, about.get("provenance", {})]
    parts += [cell.get(name, {}) for name in ("model", "method", "task", "engine")]
    if not all(isinstance(part, dict) for part in parts):
        raise ValueError(f"{path}: not the description of a cell; {_AGAIN}")
    for label, part in _LABELS.items():
        name = cell.get(part, {}).get("name")
        if label in labels and name is not None and labels[label] != name:
            raise ValueError(f"{path}: labelled {label}={labels[label]} but is {name}; {_AGAIN}")
    return about


def read_status(folder: Path) -> dict[str, Any]:
    """The last status; ``new`` or ``partial`` without one, ``unreadable`` for a bad file."""
    path = folder / "status.json"
    if not path.exists():
        return {"state": "partial" if (folder / ROWS).exists() else "new"}
    try:
        status = _read_object(path)
    except ValueError as error:
        return {"state": "unreadable", "message": str(error)}
    for name, kind in _STATUS.items():
        value = status.get(name, kind())
        if type(value) is not kind or (kind is int and value < 0):
            what = "count" if kind is int else kind.__name__
            return {"state": "unreadable", "message": f"{path}: {name!r} is not a {what}; {_AGAIN}"}
    if "state" not in status or not all(isinstance(x, str) for x in status.get("requests", [])):
        return {"state": "unreadable", "message": f"{path}: not the status of a cell; {_AGAIN}"}
    return status


def content(folder: Path) -> dict[str, Any]:
    """Length and hash of the row file, for the status of a cell that ends."""
    data = _bytes(folder / ROWS)
    return {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}


def still_has(folder: Path, known: Mapping[str, Any]) -> bool:
    """Whether the row file still begins with what ``content`` told of it."""
    data = _bytes(folder / ROWS)
    length = known.get("bytes")
    if not isinstance(length, int) or not 0 <= length <= len(data):
        return False
    return hashlib.sha256(memoryview(data)[:length]).hexdigest() == known.get("sha256")


def _bytes(path: Path) -> bytes:
    return path.read_bytes() if path.is_file() else b""


def _refuse(name: str) -> None:
    raise ValueError(f"{name} is no JSON")


def _read_object(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(regular(path).read_bytes(), parse_constant=_refuse)
    except (OSError, ValueError, RecursionError) as error:
        raise ValueError(f"{path}: cannot be read ({error}); {_AGAIN}") from error
    if not isinstance(found, dict):
        raise ValueError(f"{path}: not a JSON object; {_AGAIN}")
    return found
