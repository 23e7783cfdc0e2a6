"""The table of scores: a row per cell, a column per sub-task and length."""

from __future__ import annotations

import numpy as np
import pandas as pd

from retrobench.report.benchmarks import short_names
from retrobench.report.rows import count_range, uses_stand_in
from retrobench.report.tables.labels import each_label
from retrobench.store.row_file import OK

_UNSUPPORTED = "unsupported_by_model"


def score_matrix(frame: pd.DataFrame) -> pd.DataFrame:
    """Mean scores x 100 per cell (rows) and task/length (columns), as text.

    ``n/a``: beyond the model, not averaged. A group with failures shows them (``oom 2/5``) and is
    not averaged either, and the cell then has no average.
    """
    names = _column_names(frame)
    columns = list(names.unique())
    good = pd.to_numeric(frame["score"].where(frame["status"] == OK))
    entries = good.groupby([frame["key"], names], sort=False)
    whole = (100 * entries.mean())[entries.size() == entries.count()]  # the usual case
    texts: dict[str, dict[str, str]] = {key: {} for key in frame["key"].unique()}
    means: dict[str, list[float]] = {key: [] for key in texts}
    for (key, name), mean in whole.items():
        texts[key][name] = f"{mean:.1f}"
        means[key].append(mean)
    failed = set()
    odd = frame[~pd.MultiIndex.from_arrays([frame["key"], names]).isin(whole.index)]
    for (key, name), group in odd.groupby([odd["key"], names[odd.index]], sort=False):
        texts[key][name], mean = _group(group)
        if mean is not None:
            means[key].append(mean)
        elif texts[key][name] not in {"n/a", "-"}:
            failed.add(key)
    rows = []
    for key, labels in each_label(frame):
        average = "-" if key in failed or not means[key] else f"{np.mean(means[key]):.1f}"
        own = {name: texts[key].get(name, "") for name in columns}
        rows.append({**labels, **own, "avg": average})
    return pd.DataFrame(rows)


def _group(group: pd.DataFrame) -> tuple[str, float | None]:
    """Text and mean of a group of rows of which some have no score."""
    statuses = group["status"].astype(object)
    bad = statuses[~statuses.isin([OK, _UNSUPPORTED])]
    if len(bad):
        return f"{bad.mode().iloc[0]} {len(bad)}/{len(group)}", None
    if (statuses == _UNSUPPORTED).all():
        return "n/a", None
    mean = 100 * pd.to_numeric(group.loc[statuses == OK, "score"]).mean()
    if pd.isna(mean):
        return "-", None  # measured, but not scored
    return f"{mean:.1f}", mean


def _column_names(frame: pd.DataFrame) -> pd.Series:
    """Sub-task and length of every row: ``vt@4K``."""
    length = "@" + (frame["length"] / 1024).map("{:g}K".format)
    return short_names(frame) + length.where(frame["length"] > 0, "")


def caption(frame: pd.DataFrame) -> str:
    """Samples per group, protocol, substitute data, failures."""
    notes = [f"{count_range(frame, ['key', 'task', 'length'])} samples per entry"]
    notes.append(f"protocol: {', '.join(sorted(set(frame['protocol'])))}")
    if uses_stand_in(frame):
        notes.append("substitute data: not comparable with published scores")
    if (frame["status"] == _UNSUPPORTED).any():
        notes.append("n/a: beyond the model, not averaged")
    return "; ".join(notes)
