"""Exact field F1 of extracted records: a field is right if record, name and value are."""

import json
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

TASKS = ("parcels",)


def score(task: str, prediction: str, references: Sequence[str]) -> float:
    """F1 of the fields of all objects in the answer against those of the references (JSON texts).

    Objects are read one after the other, so an answer that is cut off counts up to its last whole
    one. A field that comes twice counts once as right and once as wrong.
    """
    given = Counter(field for found in objects(prediction) for field in _fields(found))
    gold = Counter(field for text in references for field in _fields(json.loads(text)))
    right = (given & gold).total()
    return 2 * right / (given.total() + gold.total()) if right else 0.0


def objects(text: str) -> Iterator[dict[str, Any]]:
    """The JSON objects in a text that hold no other objects."""
    for match in re.finditer(r"\{[^{}]*\}", text):
        try:
            yield json.loads(match.group())
        except (ValueError, RecursionError):
            continue


def _fields(record: dict[str, Any]) -> Iterator[tuple[str, str, str]]:
    """(record, field, value); numbers count as their text."""
    name = str(record.get("id", ""))
    for field, value in record.items():
        yield name, field, str(value)
