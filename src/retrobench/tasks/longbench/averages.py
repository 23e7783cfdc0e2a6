"""Averages as LongBench's own tables print them, one row per cell, as text."""

from collections.abc import Iterator
from typing import Any

import pandas as pd

from retrobench.store.row_file import OK
from retrobench.tasks.longbench.prompts import categories

_FIELDS = [f"meta.{name}" for name in ("e", "words", "difficulty", "length_class")]
_BINS = ((4000, "0-4k"), (8000, "4-8k"), (float("inf"), "8k+"))


def longbench(frame: pd.DataFrame) -> pd.DataFrame:
    """Category means and their mean per language; ``-`` where a data set is missing or failed.

    THUDM/LongBench README: a category is the mean of its data sets, overall the mean of categories.
    """
    rows = []
    for key, cell in _cells(frame, balanced=False):
        scores = _means(cell, cell["task"])
        for language in ("en", "zh"):
            groups = categories(language)
            if not any(name in scores for names in groups.values() for name in names):
                continue
            means = pd.Series({c: _mean(scores.reindex(names)) for c, names in groups.items()})
            texts = {category: _text(mean, 2) for category, mean in means.items()}
            rows.append({**key, "language": language, **texts, "overall": _text(_mean(means), 2)})
    return pd.DataFrame(rows)


def longbench_bins(frame: pd.DataFrame) -> pd.DataFrame:
    """LongBench-E: scores by words of the record (0-4k, 4-8k, 8k+), averaged over data sets."""
    rows = []
    for key, cell in _cells(frame, balanced=True):
        bins = cell["meta.words"].fillna(0).map(_bin)
        for task, group in cell.groupby("task", sort=False):
            means = _means(group, bins[group.index])
            texts = {label: _text(means.get(label), 2) for _, label in _BINS}
            rows.append({**key, "task": task, **texts})
    return pd.DataFrame(rows)


def longbench_v2(frame: pd.DataFrame) -> pd.DataFrame:
    """Overall, easy, hard, short, medium, long; one decimal, as in the official table."""
    rows = []
    for key, cell in _cells(frame):
        known = cell[cell["meta.difficulty"].notna()]
        texts = {"overall": _text(_means(cell, cell["task"]).get("longbench_v2"), 1)}
        for field, labels in (
            ("difficulty", ("easy", "hard")),
            ("length_class", ("short", "medium", "long")),
        ):
            means = _means(known, known[f"meta.{field}"])
            texts |= {label: _text(means.get(label), 1) for label in labels}
        rows.append({**key, **texts})
    return pd.DataFrame(rows)


def _cells(
    frame: pd.DataFrame, balanced: bool | None = None
) -> Iterator[tuple[dict[str, Any], pd.DataFrame]]:
    """Cells with any score, of LongBench-E (``balanced``), of v1, or of both."""
    frame = frame.reindex(columns=list(dict.fromkeys([*frame, *_FIELDS])))
    for _, cell in frame.groupby("key", sort=False):
        first = cell.iloc[0]
        if not (cell["status"] == OK).any():
            continue
        if balanced is not None and balanced != cell["meta.e"].eq(True).any():
            continue
        yield {"method": first["method"], "key": first["key"][:6]}, cell


def _means(cell: pd.DataFrame, groups: pd.Series) -> pd.Series:
    """Means in percent by group; NaN where a sample has no score (failed, beyond the model)."""
    scores = cell["score"].where(cell["status"] == OK).astype(float)
    return 100 * scores.groupby(groups, sort=False).agg(_mean)


def _mean(values: pd.Series) -> float:
    """NaN where any value is missing."""
    return values.mean(skipna=False)


def _text(value: float | None, decimals: int) -> str:
    return "-" if pd.isna(value) else f"{value:.{decimals}f}"


def _bin(words: int) -> str:
    return next(label for bound, label in _BINS if words < bound)
