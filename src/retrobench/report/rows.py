"""Choosing rows for a figure."""

from __future__ import annotations

import pandas as pd

from retrobench.report.figures.style import NotEnoughRows
from retrobench.report.tables.scores import stand_in
from retrobench.store.results import OK


def scored(frame: pd.DataFrame, benchmark: str, command: str) -> pd.DataFrame:
    """Answered rows of a benchmark."""
    if frame.empty or not (frame["benchmark"] == benchmark).any():
        raise NotEnoughRows(f"no rows of task={benchmark}: {command}")
    rows = frame[(frame["benchmark"] == benchmark) & (frame["status"] == OK)]
    rows = rows[rows["score"].notna()]
    if rows.empty:
        raise NotEnoughRows(f"no scored rows of task={benchmark}: {command}")
    return rows


def one_setting(frame: pd.DataFrame) -> pd.DataFrame:
    """Rows of methods as they come: default options, no budget, batch 1, query-aware."""
    plain = (frame["changed"].fillna("") == "") & frame["budget"].isna()
    plain &= (frame["engine.batch"] == 1) & (frame["protocol"] == "query_aware")
    return frame[plain].drop_duplicates(["model", "method", "sample"])


def shared_samples(frame: pd.DataFrame, by: str) -> pd.DataFrame:
    """Rows of the samples that every value of ``by`` answered, so that means compare."""
    counts = frame.groupby("sample")[by].nunique()
    return frame[frame["sample"].isin(counts[counts == frame[by].nunique()].index)]


def say(frame: pd.DataFrame, per: list[str]) -> str:
    """Model, samples per point and kind of data, for the line below a figure."""
    counts = frame.groupby(per).size()
    few, many = counts.min(), counts.max()
    number = f"{few}" if few == many else f"{few}-{many}"
    models = ", ".join(sorted(frame["model"].unique()))
    kind = "stand-in data" if stand_in(frame) else "real data"
    lengths = sorted(frame["length"].unique())
    length = f"{lengths[0]}" if len(lengths) == 1 else f"{lengths[0]}-{lengths[-1]}"
    length = f"{length} tokens, " if lengths[-1] else ""
    protocols = ", ".join(sorted(frame["protocol"].unique()))
    noun = "sample" if number == "1" else "samples"
    return f"{models}, {length}{protocols}, {number} {noun} per point, {kind}"
