"""Published scores of reference models compared with ours: paper value, ours, difference."""

import pandas as pd

from retrobench.report.benchmarks import benchmark
from retrobench.report.checks.published import RULER, RULER_BY_TASK
from retrobench.store.row_file import OK


def compare_published(frame: pd.DataFrame) -> pd.DataFrame:
    """One row for each published value that the rows have a score for; empty without any."""
    rows = []
    for key, cell in frame.groupby("key", sort=False):
        first = cell.iloc[0]
        fitting = [
            known
            for known in (*RULER, *RULER_BY_TASK)
            if known.model in str(first["model"]).lower()
            and (known.benchmark, known.method) == (first["benchmark"], first["method"])
        ]
        ours = _scores(cell) if fitting else {}
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
    """Means in percent by task and length; ``avg`` where every task of the benchmark is whole."""
    found: dict[tuple[str, int], float] = {}
    num_tasks = benchmark(cell["benchmark"].iloc[0]).num_tasks
    for length, at_length in cell.groupby("length"):
        whole = {
            (str(task), int(length)): 100 * float(group["score"].mean())
            for task, group in at_length.groupby("task")
            if (group["status"] == OK).all()
        }
        found |= whole
        if num_tasks and len(whole) == num_tasks:
            found["avg", int(length)] = sum(whole.values()) / num_tasks
    return found
