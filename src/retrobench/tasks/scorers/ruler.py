"""RULER's scorers (scripts/eval/synthetic/constants.py), per sample in [0, 1]."""

import re
from collections.abc import Sequence

_CONTROL = re.compile(r"[\x00-\x1f]")
_PART = frozenset({"qa_1", "qa_2"})


def clean(prediction: str) -> str:
    """The official post-processing: strip, control characters to newlines, strip."""
    return _CONTROL.sub("\n", prediction.strip()).strip()


def score(task: str, prediction: str, references: Sequence[str]) -> float:
    """Share of references found (``string_match_all``). For QA: whether any is (``_part``)."""
    text = clean(prediction).lower()
    found = [reference.lower() in text for reference in references]
    return float(any(found)) if task in _PART else sum(found) / len(found)
