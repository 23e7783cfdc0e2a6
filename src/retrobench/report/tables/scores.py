"""The table of scores: a row per cell, a column per sub-task and length."""

import pandas as pd

from retrobench.report import attended, headroom
from retrobench.report.benchmarks import short_names
from retrobench.report.rows import sample_count, token_count, uses_substitutes
from retrobench.report.tables.labels import each_label
from retrobench.report.tables.layout import number
from retrobench.store.row_file import OK


def score_entries(frame: pd.DataFrame) -> tuple[pd.DataFrame, pd.Series]:
    """Means x 100 by cell and column with their text, and the average of each cell.

    ``points`` lists the scores of an entry. One with failures shows them (``oom 2/5``) and is not
    averaged; the cell then has no average. Nor are columns without headroom (``counts``).
    """
    frame = frame.assign(column=column_names(frame), counts=~headroom.lacks_headroom(frame))
    points = 100 * pd.to_numeric(frame["score"].where(frame["status"] == OK))
    failed = frame["status"].where(frame["status"] != OK)
    groups = frame.assign(points=points, failed=failed).groupby(["key", "column"], sort=False)
    entries = groups.agg(
        mean=("points", "mean"),
        points=("points", lambda own: list(own.dropna())),
        failed=("failed", "count"),
        rows=("failed", "size"),
        counts=("counts", "all"),
    )
    texts = entries["mean"].map("{:.1f}".format).where(entries["mean"].notna(), "-")
    for place, entry in entries[entries["failed"] > 0].iterrows():
        status = groups.get_group(place)["failed"].mode().iloc[0]
        texts[place] = f"{status} {entry['failed']}/{entry['rows']}"
    counted = entries[entries["counts"]].groupby("key")
    average = counted["mean"].mean().where(counted["failed"].sum() == 0)
    return entries.assign(text=texts), average


def score_matrix(frame: pd.DataFrame) -> pd.DataFrame:
    """Mean scores x 100 per cell (rows) and task/length (columns), as text (``score_entries``).

    A column without headroom bears a ``*``.
    """
    entries, average = score_entries(frame)
    shown = entries["text"].unstack().reindex(columns=column_names(frame).unique()).fillna("")
    rows = []
    for (key,), labels in each_label(frame):
        known = average.get(key, float("nan"))
        rows.append({**labels, **shown.loc[key], "avg": number(known, ".1f") or "-"})
    return pd.DataFrame(rows)


def column_names(frame: pd.DataFrame) -> pd.Series:
    """Sub-task and length of every row: ``vt@4K``, ``vt*@4K`` without headroom."""
    mark = headroom.lacks_headroom(frame).map({True: headroom.MARK, False: ""})
    length = "@" + frame["length"].map(token_count)
    return short_names(frame) + mark + length.where(frame["length"] > 0, "")


def caption(frame: pd.DataFrame) -> str:
    """Lines below the tables: samples per entry, protocol, kind of data, headroom."""
    samples = sample_count(frame, ["key", "task", "length"])
    protocols = set(frame["protocol"])
    lines = [f"{samples} per entry; protocol: {', '.join(sorted(protocols))}"]
    if uses_substitutes(frame):
        lines.append("substitute data: not comparable with published scores")
    if attended.texts(frame, ["key"]):
        lines.append(attended.NOTE)
    return "\n".join([*lines, *headroom.notes(frame, column_names(frame))])
