"""Scores stored answers again: a score that was changed, or an answer that was swapped, shows."""

import math
from typing import Any

from retrobench.core.spec import parse
from retrobench.core.task import Sample, Task
from retrobench.store.results import ResultStore
from retrobench.store.row_file import OK
from retrobench.tasks import task_class


def rescore(store: ResultStore, keys: list[str]) -> list[str]:
    """One line for each cell whose answers do not have the scores that its rows tell."""
    findings = []
    for key in keys:
        rows = [row for row in store.read(key).rows.values() if _is_scored(row)]
        if not rows:
            continue
        try:
            task = _task(store.cell(key)["cell"]["task"])
            wrong = [why for row in rows if (why := _difference(task, row))]
        except (ValueError, KeyError) as error:
            findings.append(f"{key[:6]}: its answers cannot be scored again: {error}")
            continue
        if wrong:
            what = f"{len(wrong)} of {len(rows)} scores are not those of the answers"
            findings.append(f"{key[:6]}: {what} (first: {wrong[0]})")
    return findings


def _is_scored(row: dict[str, Any]) -> bool:
    return row["status"] == OK and row.get("score") is not None and "prediction" in row


def _task(asked: dict[str, Any]) -> Task:
    """The benchmark of a cell; no data are read."""
    values = {name: value for name, value in asked.items() if name not in ("name", "fingerprint")}
    task = task_class(asked["name"])
    return task(parse(task.Config, values, "task"))


def _difference(task: Task, row: dict[str, Any]) -> str:
    """How a row's score differs from its answer's; empty if it does not."""
    sample = Sample(
        id=row["sample"],
        task=row["task"],
        context="",
        question="",
        references=tuple(row["references"]),
        max_new_tokens=1,
        length=row.get("length") or 0,
        meta=row.get("meta") or {},
    )
    score = task.score(sample, row["prediction"])
    if math.isclose(score, row["score"], abs_tol=1e-9):
        return ""
    return f"{row['sample']}: {row['score']:g}, its answer has {score:g}"
