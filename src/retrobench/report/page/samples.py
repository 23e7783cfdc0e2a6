"""Samples of the page: a prompt's end, its reference, and what every cell answered."""

import json
import math
from typing import Any

import pandas as pd

from retrobench.report.tables.labels import each_label, short_label
from retrobench.store.results import ResultStore

COLUMNS = ["prediction", "references", "message", "prompt_tail", "prompt_tokens"]
ANSWERS = 5000  # of a model and benchmark; a page must stay small enough to be sent
CHARACTERS = 2000  # of a text
_PROMPT = ["protocol", "sample", "prompt_hash"]
_READ = [*COLUMNS, "prompt", "key", "sample", "task", "length", "score", "status", "meta.depth"]


class _Places:
    """Which parts of the context were attended, of cells that measured it."""

    def __init__(self, store: ResultStore, frame: pd.DataFrame) -> None:
        measured = frame.loc[frame["fidelity.steps"].notna(), "key"].unique()
        self._rows = {key: store.read(key).rows for key in measured}

    def of(self, row: dict[str, Any]) -> dict[str, Any]:
        measured = self._rows.get(row["key"], {}).get(row["sample"], {}).get("fidelity") or {}
        places = measured.get("places")
        return {"places": places} if _are_places(places) else {}


def samples(frame: pd.DataFrame, store: ResultStore) -> dict[str, Any]:
    """Prompts of one model and benchmark with their answers, ready for JSON.

    ``total`` prompts; the first of every task and length are shown, up to ``ANSWERS``.
    """
    groups = frame.groupby(_PROMPT, sort=False, dropna=False)
    frame = frame.assign(prompt=groups.ngroup())
    first = frame.drop_duplicates("prompt")
    turn = first.groupby(["task", "length"], sort=False).cumcount().sort_values(kind="stable")
    cells = {key: f"{short_label(own)} {own['key']}" for (key,), own in each_label(frame)}
    numbers = {key: number for number, key in enumerate(cells)}
    kept = set(first.loc[turn.index[: max(1, ANSWERS // len(cells))], "prompt"])
    places, found = _Places(store, frame), []
    by_prompt: dict[int, list[dict[str, Any]]] = {}
    for line in frame.reindex(columns=_READ)[frame["prompt"].isin(kept)].to_dict("records"):
        by_prompt.setdefault(line["prompt"], []).append(line)
    for lines in by_prompt.values():
        about = next((line for line in lines if isinstance(line["prompt_tail"], str)), lines[0])
        answers = [_answer(line, numbers[line["key"]], places) for line in lines]
        found.append({**_asked(about), "answers": answers})
    return {"cells": list(cells.values()), "total": len(first), "prompts": found}


def _asked(row: dict[str, Any]) -> dict[str, Any]:
    references = row["references"]
    return {
        "sample": row["sample"],
        "task": row["task"],
        "length": int(row["length"]),
        "tokens": _number(row["prompt_tokens"]),
        "depth": _number(row["meta.depth"]),
        "tail": _text(row["prompt_tail"]),
        "references": [_text(x) for x in json.loads(references)] if _text(references) else [],
    }


def _answer(row: dict[str, Any], cell: int, places: _Places) -> dict[str, Any]:
    answer = {"cell": cell, "score": _number(row["score"]), "status": row["status"]}
    texts = {"prediction": _text(row["prediction"]), "message": _text(row["message"])}
    return {**answer, **{k: v for k, v in texts.items() if v}, **places.of(row)}


def _are_places(places: Any) -> bool:
    """Whether these are shares by place, as ``measure.fidelity`` writes them."""
    if not isinstance(places, dict):
        return False
    attended, mass = places.get("attended"), places.get("mass")
    if not (isinstance(attended, list) and isinstance(mass, list)):
        return False
    return len(attended) == len(mass) > 0 and all(map(_is_share, [*attended, *mass]))


def _is_share(value: Any) -> bool:
    return isinstance(value, int | float) and 0 <= value <= 1.0001


def _text(value: Any) -> str:
    if not isinstance(value, str):
        return "" if value is None or value != value else str(value)[:CHARACTERS]
    cut = len(value) - CHARACTERS
    return f"{value[:CHARACTERS]} … ({cut} more characters)" if cut > 0 else value


def _number(value: Any) -> float | None:
    value = pd.to_numeric(value, errors="coerce")
    return round(float(value), 6) if math.isfinite(value) else None
