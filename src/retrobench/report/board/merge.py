"""Several results folders as one: what is sound in each, and what a reader must know of a cell."""

from __future__ import annotations

import json
import shutil
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from retrobench.core.code import code_fingerprint
from retrobench.core.registry import method_names
from retrobench.core.words import counted
from retrobench.store.results import ResultStore
from retrobench.store.row_file import OK

_FILES = ("cell.json", "rows.jsonl", "status.json", "verify.json")


@dataclass(slots=True, kw_only=True)
class Merged:
    """One results folder made of several.

    ``sources``: cell -> numbers of the folders that have it, the one whose rows are shown first.
    ``flags``: cell -> what speaks against it. ``verified``: cell -> verdict of its last receipt.
    ``problems``: damaged files, a line each; their rows are left out.
    """

    store: ResultStore
    folders: list[str]
    sources: dict[str, list[int]] = field(default_factory=dict)
    flags: dict[str, list[str]] = field(default_factory=dict)
    verified: dict[str, str] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)


def merge(folders: Sequence[str], into: Path) -> Merged:
    """Copy the sound cells of results folders into the folder ``into``.

    A cell that several folders have comes from the one with most answers, the first of equals, and
    the answers of the others are compared with it. ValueError for a folder without cells, or an
    ``into`` that holds some already.
    """
    if any(into.glob("*/cell.json")):
        raise ValueError(f"{into} holds cells already; name a new folder")
    merged = Merged(store=ResultStore(into), folders=list(folders))
    stores = [ResultStore(folder) for folder in folders]
    owners: dict[str, list[int]] = defaultdict(list)
    for number, (folder, store) in enumerate(zip(folders, stores, strict=True)):
        if not store.cell_keys():
            raise ValueError(f"{folder}: no cells there; name a results folder (results/runs)")
        merged.problems += store.problems()
        for key in store.sound_keys():
            owners[key].append(number)
    for key, numbers in sorted(owners.items()):
        scores = {number: _scores(stores[number], key) for number in numbers}
        numbers.sort(key=lambda number: -len(scores[number]))  # stable: the first of equals
        first = numbers[0]
        _copy(stores[first].root / key, into / key)
        merged.sources[key] = [number + 1 for number in numbers]
        merged.verified[key] = _receipt(into / key)
        others = [scores[number] for number in numbers[1:]]
        merged.flags[key] = [*_doubts(stores[first], key), *_conflicts(scores[first], others)]
    return merged


def _scores(store: ResultStore, key: str) -> dict[str, Any]:
    rows = store.read(key).rows.items()
    return {sample: row.get("score") for sample, row in rows if row["status"] == OK}


def _copy(source: Path, target: Path) -> None:
    target.mkdir(parents=True)
    for name in _FILES:
        if (source / name).is_file():
            shutil.copyfile(source / name, target / name)


def _doubts(store: ResultStore, key: str) -> list[str]:
    """What the files of a cell say against its rows."""
    method, status = store.cell(key)["cell"]["method"]["name"], store.status(key)
    found, known = store.read(key), []
    codes = {row.get("code") for row in found.rows.values()}
    if len(codes) > 1:
        known.append(f"rows of {len(codes)} versions of the code")
    if method not in method_names():
        known.append("method not installed here")
    elif codes - {code_fingerprint(method)}:
        known.append("other code than here")
    if found.unchecked:
        known.append(f"{counted(found.unchecked, 'row')} without a digest")
    if found.damaged:
        known.append(f"{counted(len(found.damaged), 'damaged row')} left out")
    if status.get("altered"):
        known.append("files were changed between runs")
    return known


def _conflicts(ours: dict[str, Any], others: Sequence[dict[str, Any]]) -> list[str]:
    """Samples whose score another folder does not confirm."""
    differing = {
        sample
        for other in others
        for sample, score in other.items()
        if sample in ours and ours[sample] != score
    }
    return [f"{counted(len(differing), 'score')} not confirmed"] if differing else []


def _receipt(folder: Path) -> str:
    """Verdict of the last ``retrobench verify``, and on how many samples; empty without one."""
    try:
        found = json.loads((folder / "verify.json").read_bytes())
        return f"{found['verdict']} ({len(found['samples'])})"
    except (OSError, ValueError, KeyError, TypeError):
        return ""
