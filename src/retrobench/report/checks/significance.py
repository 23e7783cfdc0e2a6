"""Each cell against full attention on the same samples, with alarms.

An approximation that beats full attention significantly, a larger budget that answers worse than a
smaller one, or a selection that is worse than random tokens, is rather a fault than a gift. One
that beats the heaviest tokens (oracle_topk) needs a reason.
"""

from collections.abc import Iterator
from itertools import pairwise

import numpy as np
import pandas as pd

from retrobench.core.budget import Budget
from retrobench.report.headroom import informative
from retrobench.stats.intervals import PairedComparison, compare, holm
from retrobench.store.row_file import OK

ALPHA = 0.05
_SETTING = ["model", "benchmark", "protocol"]
_APART = ["method", "changed", "engine.batch", *_SETTING]
_ORDERED = {"oracle_topk", "random", "streaming"}  # controls; streaming does not select
_REASON = "a fault, unless it leaves layers dense or estimates on tasks that aggregate (cwe, fwe)"
_Pairs = Iterator[tuple[str, pd.DataFrame, pd.DataFrame]]  # label, rows of ours, of the base


def significance(frame: pd.DataFrame) -> list[str]:
    """Every comparison with full attention, then every alarm."""
    against_full = [f"against full: {line}" for line in full_comparisons(frame)]
    return [*against_full, *budget_alarms(frame), *order_alarms(frame)]


def full_comparisons(frame: pd.DataFrame) -> list[str]:
    """One line per cell that shares answered samples with a `full` cell of its setting."""
    alarm = "  ALARM: an approximation beats full attention"
    found = _corrected(_against_full(scored(frame)))
    return [line + (alarm if direction > 0 else "") for line, direction in found]


def budget_alarms(frame: pd.DataFrame) -> list[str]:
    """One line for each budget that answers significantly worse than the next smaller one."""
    found = _corrected(_neighbours(scored(frame)))
    return [f"{line}  ALARM: a larger budget answers worse" for line, sign in found if sign < 0]


def order_alarms(frame: pd.DataFrame) -> list[str]:
    """One line for each cell that breaks oracle_topk >= method >= random at its budget."""
    lines = []
    for line, direction in _corrected(_against_controls(scored(frame))):
        if direction < 0 and " against random: " in line:
            lines.append(f"{line}  ALARM: random tokens answer better")
        if direction > 0 and " against oracle_topk: " in line:
            lines.append(f"{line}  ALARM: beats oracle_topk: {_REASON}")
    return lines


def _corrected(pairs: _Pairs) -> list[tuple[str, int]]:
    """(line, direction) of comparisons made together: 1 or -1 if significant after Holm, else 0."""
    compared = [(label, paired(ours, base)) for label, ours, base in pairs]
    found = [(label, result) for label, result in compared if result]
    lines = []
    for (label, result), p in zip(found, holm([r.p_value for _, r in found]), strict=True):
        text = (
            f"{label}: {100 * result.difference:+.1f} points "
            f"[{100 * result.low:+.1f}, {100 * result.high:+.1f}], "
            f"{result.wins} wins {result.losses} losses {result.ties} ties, p={p:.3g} (Holm)"
        )
        lines.append((text, int(np.sign(result.difference)) if p < ALPHA else 0))
    return lines


def scored(frame: pd.DataFrame) -> pd.DataFrame:
    """Answered rows of columns with headroom; ``pair``: equal where sample and prompt are."""
    rows = informative(frame[(frame["status"] == OK) & frame["score"].notna()])
    pairs = rows.groupby(["sample", "prompt_hash"], sort=False, dropna=False).ngroup()
    return rows.reindex(columns=[*_APART, "key", "budget", "score"]).assign(pair=pairs)


def _against_full(scored: pd.DataFrame) -> _Pairs:
    for names, group in scored.groupby(_SETTING, sort=False):
        base = group[group["method"] == "full"]
        for key, cell in group[group["method"] != "full"].groupby("key", sort=False):
            yield f"{' '.join(names)}: {cell['method'].iloc[0]} {key[:6]}", cell, base


def _neighbours(scored: pd.DataFrame) -> _Pairs:
    """Cells that differ in the budget alone: each against the next smaller budget of its unit."""
    budgeted = scored[scored["budget"].notna()]
    for names, group in budgeted.groupby(_APART, sort=False, dropna=False):
        budgets = [(Budget.parse(text), text) for text in group["budget"].unique()]
        budgets.sort(key=lambda entry: entry[0].value)
        for kind in {(budget.unit, budget.cap) for budget, _ in budgets}:
            alike = [text for b, text in budgets if (b.unit, b.cap) == kind]
            for small, large in pairwise(alike):
                larger, smaller = (group[group["budget"] == text] for text in (large, small))
                label = f"{' '.join(names[3:])}: {_cell(larger)} after {_cell(smaller)}"
                yield label, larger, smaller


def _against_controls(scored: pd.DataFrame) -> _Pairs:
    """Cells against the controls of equal budget (of tokens: equal mass is no equal number)."""
    budgeted = scored[scored["budget"].notna()]
    budgeted = budgeted[~budgeted["budget"].astype(str).str.startswith("top_p")]
    for names, group in budgeted.groupby([*_SETTING, "engine.batch", "budget"], sort=False):
        controls = {name: group[group["method"] == name] for name in ("oracle_topk", "random")}
        for key, cell in group[~group["method"].isin(_ORDERED)].groupby("key", sort=False):
            for control, base in controls.items():
                ours = f"{cell['method'].iloc[0]} {str(key)[:6]} at {names[4]}"
                yield f"{' '.join(names[:3])}: {ours} against {control}", cell, base


def _cell(rows: pd.DataFrame) -> str:
    """Method, cells, options and budget of rows at one budget."""
    first = rows.iloc[0]
    changed = first["changed"] if isinstance(first["changed"], str) else ""
    words = [first["method"], *(str(key)[:6] for key in rows["key"].unique()), changed]
    return " ".join(word for word in (*words, f"budget {first['budget']}") if word)


def paired(ours: pd.DataFrame, base: pd.DataFrame) -> PairedComparison | None:
    """The comparison on samples with the same prompt; None without any."""
    own, first = np.unique(ours["pair"].to_numpy(), return_index=True)
    known, first_known = np.unique(base["pair"].to_numpy(), return_index=True)
    _, at, at_known = np.intersect1d(own, known, assume_unique=True, return_indices=True)
    if not len(at):
        return None
    scores, reference = (rows["score"].to_numpy(dtype=float) for rows in (ours, base))
    return compare(scores[first[at]], reference[first_known[at_known]])
