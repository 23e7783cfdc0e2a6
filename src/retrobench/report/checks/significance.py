"""Each cell against full attention on the same samples, with alarms.

An approximation that beats full attention significantly, a larger budget that answers worse than a
smaller one, or a selection that is worse than random tokens, is rather a fault than a gift. One
that beats the heaviest tokens (oracle_topk) needs a reason.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise

import numpy as np
import pandas as pd

from retrobench.core.budget import Budget
from retrobench.stats.paired import Verdict, compare, holm
from retrobench.store.results import OK

ALPHA = 0.05
_SETTING = ["model", "benchmark", "protocol"]
_APART = ["method", "changed", "engine.batch", *_SETTING]
_ORDERED = {"oracle_topk", "random", "streaming"}  # controls; streaming does not select
_REASON = "a fault, unless it leaves layers dense or estimates on tasks that aggregate (cwe, fwe)"


def verdicts(frame: pd.DataFrame) -> list[str]:
    """One line per cell that shares answered samples with a `full` cell of its setting."""
    found = list(_against_full(_scored(frame)))
    lines = []
    adjusted = holm([verdict.p_value for _, verdict in found])
    for (label, verdict), p in zip(found, adjusted, strict=True):
        line = f"{label}: {_words(verdict, p)}"
        if p < ALPHA and verdict.difference > 0:
            line += "  ALARM: an approximation beats full attention"
        lines.append(line)
    return lines


def budget_alarms(frame: pd.DataFrame) -> list[str]:
    """One line for each budget that answers significantly worse than the next smaller one."""
    found = list(_neighbours(_scored(frame)))
    adjusted = holm([verdict.p_value for _, verdict in found])
    return [
        f"{label}: {_words(verdict, p)}  ALARM: a larger budget answers worse"
        for (label, verdict), p in zip(found, adjusted, strict=True)
        if p < ALPHA and verdict.difference < 0
    ]


def order_alarms(frame: pd.DataFrame) -> list[str]:
    """One line for each cell that breaks oracle_topk >= method >= random at its budget."""
    found = list(_against_controls(_scored(frame)))
    adjusted = holm([verdict.p_value for _, _, verdict in found])
    lines = []
    for (label, control, verdict), p in zip(found, adjusted, strict=True):
        if p < ALPHA and control == "random" and verdict.difference < 0:
            lines.append(f"{label}: {_words(verdict, p)}  ALARM: random tokens answer better")
        if p < ALPHA and control == "oracle_topk" and verdict.difference > 0:
            lines.append(f"{label}: {_words(verdict, p)}  ALARM: beats oracle_topk: {_REASON}")
    return lines


def _scored(frame: pd.DataFrame) -> pd.DataFrame:
    """Answered rows; ``pair`` is the same number wherever sample and prompt are the same."""
    rows = frame[(frame["status"] == OK) & frame["score"].notna()]
    pairs = rows.groupby(["sample", "prompt_hash"], sort=False, dropna=False).ngroup()
    return rows.reindex(columns=[*_APART, "key", "budget", "score"]).assign(pair=pairs)


def _against_full(scored: pd.DataFrame) -> Iterator[tuple[str, Verdict]]:
    for names, group in scored.groupby(_SETTING, sort=False):
        base = group[group["method"] == "full"]
        for key, cell in group[group["method"] != "full"].groupby("key", sort=False):
            if verdict := _paired(cell, base):
                yield f"{' '.join(names)}: {cell['method'].iloc[0]} {key[:6]}", verdict


def _neighbours(scored: pd.DataFrame) -> Iterator[tuple[str, Verdict]]:
    """Cells that differ in the budget alone: each against the next smaller budget of its unit."""
    budgeted = scored[scored["budget"].notna()]
    for names, group in budgeted.groupby(_APART, sort=False, dropna=False):
        budgets = [(Budget.parse(text), text) for text in group["budget"].unique()]
        for unit in {budget.unit for budget, _ in budgets}:
            texts = [t for b, t in sorted(budgets, key=lambda e: e[0].value) if b.unit == unit]
            for less, more in pairwise(texts):
                cells = (group[group["budget"] == text] for text in (more, less))
                if verdict := _paired(*cells):
                    setting = " ".join(names[3:])
                    yield f"{setting}: {_cell(group, more)} after {_cell(group, less)}", verdict


def _against_controls(scored: pd.DataFrame) -> Iterator[tuple[str, str, Verdict]]:
    """(cells, control, comparison) at equal budgets."""
    budgeted = scored[scored["budget"].notna()]
    for names, group in budgeted.groupby([*_SETTING, "engine.batch", "budget"], sort=False):
        controls = {name: group[group["method"] == name] for name in ("oracle_topk", "random")}
        for key, cell in group[~group["method"].isin(_ORDERED)].groupby("key", sort=False):
            for control, base in controls.items():
                if verdict := _paired(cell, base):
                    ours = f"{cell['method'].iloc[0]} {str(key)[:6]}"
                    setting = f"{' '.join(names[:3])}: {ours} at {names[4]}"
                    yield f"{setting} against {control}", control, verdict


def _cell(group: pd.DataFrame, budget: str) -> str:
    """Method, cells and options at a budget."""
    rows = group[group["budget"] == budget]
    changed = rows["changed"].fillna("").iloc[0]
    words = [rows["method"].iloc[0], *(str(key)[:6] for key in rows["key"].unique()), changed]
    return " ".join(word for word in (*words, f"budget {budget}") if word)


def _paired(ours: pd.DataFrame, base: pd.DataFrame) -> Verdict | None:
    """The comparison on samples with the same prompt; None without any."""
    own, first = np.unique(ours["pair"].to_numpy(), return_index=True)
    known, first_known = np.unique(base["pair"].to_numpy(), return_index=True)
    _, at, at_known = np.intersect1d(own, known, assume_unique=True, return_indices=True)
    if not len(at):
        return None
    scores, reference = (rows["score"].to_numpy(dtype=float) for rows in (ours, base))
    return compare(scores[first[at]], reference[first_known[at_known]])


def _words(verdict: Verdict, p: float) -> str:
    return (
        f"{100 * verdict.difference:+.1f} points "
        f"[{100 * verdict.low:+.1f}, {100 * verdict.high:+.1f}], "
        f"{verdict.wins} wins {verdict.losses} losses {verdict.ties} ties, p={p:.3g}"
    )
