"""Choosing rows for tables and figures, and quantities that several of them show."""

from typing import Any

import pandas as pd

from retrobench.core.words import counted
from retrobench.store.row_file import OK

# methods in tables and legends; others follow
ORDER = (
    *("full", "retroinfer", "oracle_topk", "quest", "infinigen", "streaming", "random"),
    *("retroinfer_plus", "retroinfer_faithful", "retrieval_attention", "sparf", "shadowkv"),
    *("magicpig", "pqcache", "heterocache", "snapkv", "adakv", "pyramidkv", "full_offload"),
)
FULL_ATTENTION = ("full", "full_offload")  # without a budget
HELD_BYTES = ["footprint.device", "footprint.pinned", "footprint.host"]


class NotEnoughRows(ValueError):
    """A figure cannot be drawn; says which rows it needs and the command that makes them."""


def require(condition: Any, needs: str, command: str) -> None:
    """NotEnoughRows unless the condition holds; ``command`` makes the rows."""
    if not condition:
        raise NotEnoughRows(f"{needs}: {command}")


def scored(frame: pd.DataFrame, benchmark: str, command: str) -> pd.DataFrame:
    """Answered rows of a benchmark."""
    rows = frame[frame["benchmark"] == benchmark]
    require(len(rows), f"no rows of task={benchmark}", command)
    rows = rows[(rows["status"] == OK) & rows["score"].notna()]
    require(len(rows), f"no scored rows of task={benchmark}", command)
    return rows


def default_options(frame: pd.DataFrame) -> pd.Series:
    """Rows of methods whose options were not changed."""
    return frame["changed"].fillna("") == ""


def one_setting(frame: pd.DataFrame, command: str) -> pd.DataFrame:
    """Rows of methods as they come: default options, one budget and batch size, query-aware.

    The batch size and the budget are those that most methods have.
    """
    rows = frame[default_options(frame) & (frame["protocol"] == "query_aware")]
    require(len(rows), "no rows of methods with default options", command)
    return one_budget(usual_batch(rows)).drop_duplicates(["model", "method", "sample"])


def usual_batch(frame: pd.DataFrame) -> pd.DataFrame:
    """Rows at the batch size that most methods have, the smallest of equals."""
    methods = frame.groupby("engine.batch")["method"].nunique()
    return frame[frame["engine.batch"] == methods.idxmax()]


def one_budget(frame: pd.DataFrame) -> pd.DataFrame:
    """Rows at the budget that most methods have, methods' own defaults before others.

    Full attention has none and stays.
    """
    budget, full = frame["budget"].fillna(""), frame["method"].isin(FULL_ATTENTION)
    methods = frame["method"].groupby(budget[~full]).nunique().sort_index()
    chosen = "" if methods.empty else methods.idxmax()
    return frame[budget.eq(chosen) | (full & budget.eq(""))]


def usual_length(frame: pd.DataFrame) -> pd.DataFrame:
    """Rows at the length that most of them have, the longest of equals."""
    return frame[frame["length"].isin(frame["length"].mode().tail(1))]


def shared_samples(frame: pd.DataFrame, by: str) -> pd.DataFrame:
    """Rows of the samples that every value of ``by`` answered, so that means compare."""
    counts = frame.groupby("sample")[by].nunique()
    return frame[frame["sample"].isin(counts[counts == frame[by].nunique()].index)]


def score_grid(frame: pd.DataFrame, by: str, values: str = "score") -> pd.DataFrame:
    """Mean score by the values of a column (rows, in their order) and by length (columns)."""
    rows = frame[frame["status"] == OK]
    grid = rows.pivot_table(index=by, columns="length", values=values, aggfunc="mean", sort=False)
    return grid.sort_index(axis=1)


def moved_bytes(frame: pd.DataFrame) -> pd.Series:
    """Bytes that a decode step read or copied, over all layers."""
    return frame.filter(like="live.bytes_per_step.").sum(axis=1)


def step_seconds(frame: pd.DataFrame) -> pd.Series:
    """Seconds of a decode step."""
    return frame["decode_s"] / frame["decode_steps"].clip(lower=1)


def token_count(count: float) -> str:
    """A token count in few characters: 512, 4K, 128K."""
    return f"{count / 1024:g}K" if count >= 1024 and count % 128 == 0 else f"{count:g}"


def uses_substitutes(frame: pd.DataFrame) -> bool:
    """Whether any row used substitute data."""
    return "meta.stand_in" in frame and bool(frame["meta.stand_in"].eq(True).any())


def sample_count(frame: pd.DataFrame, by: list[str]) -> str:
    """Rows per group as text: ``1 sample``, ``3 samples``, or ``3-5 samples`` where they differ."""
    counts = frame.groupby(by).size()
    low, high = counts.min(), counts.max()
    return counted(low, "sample") if low == high else f"{low}-{high} samples"


def describe(frame: pd.DataFrame, by: list[str]) -> str:
    """Model, length, protocol, samples per point and kind of data, for the line below a figure."""
    models = ", ".join(sorted(frame["model"].unique()))
    kind = "substitute data" if uses_substitutes(frame) else "no substitute data"
    lengths = sorted(frame["length"].unique())
    length = "-".join(map(token_count, dict.fromkeys([lengths[0], lengths[-1]])))
    length = f"{length} tokens, " if lengths[-1] else ""
    protocols = ", ".join(sorted(frame["protocol"].unique()))
    budgets = frame["budget"].dropna().unique()
    budget = f"budget {budgets[0]}, " if len(budgets) == 1 else ""
    samples = sample_count(frame, by)
    return f"model {models}, {length}{budget}protocol {protocols}, {samples} per point, {kind}"
