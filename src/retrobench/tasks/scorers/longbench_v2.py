"""LongBench v2's metric (THUDM/LongBench 2e00731f, pred.py): the letter named in the answer."""

import re
from collections.abc import Sequence

_FORMS = (
    re.compile(r"The correct answer is \(([A-D])\)"),
    re.compile(r"The correct answer is ([A-D])"),
)
TASKS = ("longbench_v2",)


def choice(prediction: str) -> str | None:
    """The chosen letter, or None. Asterisks (bold marks) are dropped first."""
    text = prediction.replace("*", "")
    for form in _FORMS:
        if match := form.search(text):
            return match.group(1)
    return None


def score(task: str, prediction: str, references: Sequence[str]) -> float:
    """1 if the chosen letter is the reference; no answer is wrong (``compensated`` is off)."""
    return float(choice(prediction) in references)
