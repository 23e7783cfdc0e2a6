"""Which scores can tell methods apart: a task that full attention fails says nothing of a method.

A *column* is a task at a length, under one model, benchmark and protocol. It is without headroom
where full attention scores below 20 points, or below 10 points above chance if there are choices.
Tables and figures mark such a column with ``*`` and leave it out of averages, comparisons
and alarms. Where the results hold no full attention of a column, its headroom is unknown: it counts
and is named.
"""

from collections.abc import Sequence

import pandas as pd

from retrobench.core.budget import Budget
from retrobench.report.benchmarks import benchmark
from retrobench.report.rows import FULL_ATTENTION, ORDER
from retrobench.store.results import ResultStore
from retrobench.store.row_file import OK

LEAST_SCORE, ABOVE_CHANCE = 0.20, 0.10
MARK = "*"
NOTE = (
    f"{MARK} no headroom: full attention scores below {100 * LEAST_SCORE:g}, or less than "
    f"{100 * ABOVE_CHANCE:g} above chance"
)
_COLUMN = ["model", "benchmark", "protocol", "task", "length"]
_SHOWN = 6  # names in a note


def load(
    store: ResultStore, names: Sequence[str] | None, keys: Sequence[str] | None
) -> pd.DataFrame:
    """Rows by model, method and budget, with full attention's mean score (``full_score``).

    Other cells of the store count as well, if they were asked the same prompts.
    """
    frame = store.columns(names, keys)
    if frame.empty or "score" not in frame:
        return frame
    every = store.columns([*_COLUMN, "key", "method", "status", "score", "prompt_hash"])
    asked = every["prompt_hash"].isin(set(frame["prompt_hash"].dropna()))
    frame = frame.sort_values(
        ["model", "method", "budget"], key=_place, na_position="first", ignore_index=True,
        kind="stable",
    )  # fmt: skip
    return frame.assign(full_score=_full_scores(frame, every[asked]))


def _place(column: pd.Series) -> pd.Series:
    """What a column is sorted by: methods as in every legend, budgets by their amount."""
    if column.name == "method":
        return column.map({name: place for place, name in enumerate(ORDER)}).fillna(len(ORDER))
    if column.name == "budget":
        return column.map(lambda text: Budget.parse(text).value, na_action="ignore").astype(float)
    return column


def _full_scores(frame: pd.DataFrame, among: pd.DataFrame) -> pd.Series:
    """Mean score of full attention (of the rows ``among``) in the column of every row, or NaN."""
    full = among[among["method"].isin(FULL_ATTENTION) & (among["status"] == OK)]
    means = pd.to_numeric(full["score"]).groupby([full[name] for name in _COLUMN]).mean()
    return frame[_COLUMN].join(means.rename("full_score"), on=_COLUMN)["full_score"]


def full_score(frame: pd.DataFrame) -> pd.Series:
    """Full attention's mean score in the column of every row; NaN where it is not known."""
    return frame["full_score"] if "full_score" in frame else _full_scores(frame, frame)


def lacks_headroom(frame: pd.DataFrame) -> pd.Series:
    """Rows of columns that are known to tell nothing."""
    tasks = frame[["benchmark", "task"]].drop_duplicates().itertuples(index=False, name=None)
    least = {pair: _least_score(*pair) for pair in tasks}
    pairs = zip(frame["benchmark"], frame["task"], strict=True)
    known = full_score(frame).round(9)  # a mean of 0.2 must not lie below 0.2
    return known < pd.Series([least[pair] for pair in pairs], frame.index, dtype=float)


def _least_score(name: str, task: str) -> float:
    chance = benchmark(name).chance.get(task, 0.0)
    return chance + ABOVE_CHANCE if chance else LEAST_SCORE


def informative(frame: pd.DataFrame) -> pd.DataFrame:
    """Rows of columns that have headroom, or of which it is not known."""
    return frame[~lacks_headroom(frame)]


def notes(frame: pd.DataFrame, names: pd.Series) -> list[str]:
    """What to say below scores; ``names`` are the rows' columns as the reader sees them."""
    scored = frame["score"].notna() & (frame["status"] == OK)
    found = []
    if lacks_headroom(frame[scored]).any():
        found.append(f"{NOTE}; left out of averages and comparisons")
    unknown = names[scored & full_score(frame).isna()].unique()
    if len(unknown):
        shown = ", ".join(unknown[:_SHOWN]) + (" ..." if len(unknown) > _SHOWN else "")
        found.append(f"no full-attention reference, headroom unknown: {shown}")
    return found


def figure_note(frame: pd.DataFrame, left_out: pd.DataFrame | None = None) -> str:
    """A further line below a figure of scores, where there is something to say.

    ``left_out``: rows that an averaging figure does not show; without it, marked columns are shown.
    """
    if left_out is not None and len(left_out):
        tasks = ", ".join(sorted(left_out["task"].unique()))
        return f"\nleft out, no headroom (full attention below 20 or chance + 10): {tasks}"
    if left_out is None and lacks_headroom(frame).any():
        return f"\n{NOTE}"
    return "\nno full-attention reference" if full_score(frame).isna().any() else ""
