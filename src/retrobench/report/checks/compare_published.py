"""Published RULER scores of reference models beside ours: paper value, ours, difference."""

from __future__ import annotations

import pandas as pd

from retrobench.report.checks.published import RULER, RULER_BY_TASK
from retrobench.store.results import OK

_NUM_TASKS = 13


def beside_published(frame: pd.DataFrame) -> pd.DataFrame:
    """One row for each published value that the rows have a score for; empty without any."""
    rows = []
    ruler = frame[frame["benchmark"] == "ruler"]
    for first in ruler.drop_duplicates("key")[["key", "model", "method"]].itertuples():
        key, method = str(first.key), first.method
        fitting = [
            known
            for known in (*RULER, *RULER_BY_TASK)
            if known.model in str(first.model).lower() and known.method == method
        ]
        ours = _scores(ruler[ruler["key"] == key]) if fitting else {}
        for known in fitting:
            mean = ours.get((known.task, known.length))
            if mean is None:
                continue
            rows.append(
                {
                    "method": known.method,
                    "key": str(key)[:6],
                    "task": known.task,
                    "length": f"{known.length / 1024:g}K",
                    "paper": f"{known.score:.1f}",
                    "ours": f"{mean:.1f}",
                    "difference": f"{mean - known.score:+.1f}",
                    "source": known.source,
                }
            )
    return pd.DataFrame(rows)


def _scores(cell: pd.DataFrame) -> dict[tuple[str, int], float]:
    """Means in percent by task and length; ``avg`` where all 13 tasks are whole."""
    found: dict[tuple[str, int], float] = {}
    for length, at_length in cell.groupby("length"):
        whole = {}
        for task, group in at_length.groupby("task"):
            if (group["status"] == OK).all():
                whole[str(task), int(str(length))] = 100 * float(group["score"].mean())
        found |= whole
        if len(whole) == _NUM_TASKS:
            found["avg", int(str(length))] = sum(whole.values()) / _NUM_TASKS
    return found
