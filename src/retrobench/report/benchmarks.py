"""What reports ask of the benchmark of a row; the answers are the task classes' own."""

from collections.abc import Iterator
from functools import cache

import pandas as pd

from retrobench.core.task import Task
from retrobench.tasks import task_class, task_names


@cache
def benchmark(name: str) -> type[Task]:
    """The task class of a benchmark; the plain ``Task`` for rows of one that is not known here."""
    return task_class(name) if name in task_names() else Task


def display_name(name: str, task: str) -> str:
    """A sub-task's name in figures."""
    return benchmark(name).display_names.get(task, task.replace("_", " "))


def short_names(frame: pd.DataFrame) -> pd.Series:
    """Sub-tasks of the rows as the columns of tables call them."""
    pairs = zip(frame["benchmark"], frame["task"], strict=True)
    found = [_short_name(name, task) for name, task in pairs]
    return pd.Series(found, index=frame.index, dtype=object)


@cache
def _short_name(name: str, task: str) -> str:
    return benchmark(name).short_names.get(task, task)


def is_timed(frame: pd.DataFrame) -> pd.Series:
    """Rows of benchmarks that time decode steps and score nothing."""
    return frame["benchmark"].map(lambda name: benchmark(name).measure == "latency").astype(bool)


def is_replayed(frame: pd.DataFrame) -> pd.Series:
    """Rows of benchmarks whose queue was simulated."""
    return frame["benchmark"].map(lambda name: benchmark(name).measure == "replay").astype(bool)


def is_unscored(frame: pd.DataFrame) -> pd.Series:
    """Rows of benchmarks that have no answers to score."""
    return frame["benchmark"].map(lambda name: benchmark(name).measure is not None).astype(bool)


def averages(frame: pd.DataFrame) -> Iterator[tuple[str, pd.DataFrame]]:
    """(title, table) of every benchmark in the rows that has official averages."""
    for name, rows in frame.groupby("benchmark", sort=False):
        for title, table in benchmark(str(name)).aggregate(rows):
            if not table.empty:
                yield title, table
