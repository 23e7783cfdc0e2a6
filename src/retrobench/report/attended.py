"""What decode steps attended, said wherever it is not what the budget asked for.

Dense layers, whole pages and clusters, a least number of pages, or a context too short for an index
make a method attend more (or less) than its budget.
"""

import pandas as pd

from retrobench.core.budget import Budget
from retrobench.report.rows import FULL_ATTENTION
from retrobench.store.row_file import OK

TOLERANCE_FRAC, TOLERANCE_TOKENS = 0.05, 1
NOTE = (
    "attended: share of the context, or tokens, that a decode step attends exactly, mean over "
    f"layers; shown where the budget is a default or is missed by more than {TOLERANCE_FRAC:.0%}"
)
COLUMNS = "method budget length status prompt_tokens decode_steps".split()
COLUMNS += ["live.attended_tokens", "live.context_tokens", "speed.step_s"]


def texts(frame: pd.DataFrame, by: list[str]) -> dict[tuple[object, ...], str]:
    """Attended tokens or share of the context for each group of rows; only those to be said.

    In the budget's unit, tokens for bytes; a range (``13-100%``) where lengths differ.
    """
    rows = frame.reindex(columns=list(dict.fromkeys([*by, *COLUMNS])))
    rows = rows[(rows["status"] == OK) & rows["live.attended_tokens"].notna()]
    rows = rows[~rows["method"].isin(FULL_ATTENTION)]
    prompt = rows["prompt_tokens"].fillna(rows["length"])
    # it grows by the answer: its mean. Timed runs count after their steps; older ones say not where
    timed, steps = rows["speed.step_s"].notna(), rows["decode_steps"]
    context = prompt + steps.where(timed, (steps + 1) / 2)
    rows = rows.assign(
        tokens=rows["live.attended_tokens"].astype(float),
        prompt=prompt.astype(float),
        context=rows["live.context_tokens"].fillna(context),
    )
    groups = list(dict.fromkeys([*by, "budget", "length"]))
    medians = rows.groupby(groups, sort=False, dropna=False)[["tokens", "prompt", "context"]]
    medians = medians.median().reset_index()
    found = {}
    for group, own in medians.groupby(by, sort=False):
        budget = own["budget"].iloc[0]
        budget = Budget.parse(budget) if isinstance(budget, str) else None
        entries = own[["tokens", "prompt", "context"]].to_numpy()
        if any(_differs(budget, *entry) for entry in entries):
            share = budget is None or budget.unit in ("frac", "top_p")
            found[group] = _range(own, "%" if share else " tok")
    return found


def _differs(budget: Budget | None, tokens: float, prompt: float, context: float) -> bool:
    """Whether the tokens attended are to be said beside the budget."""
    if budget is None or budget.unit in ("bytes", "top_p"):
        return True
    asked = budget.value * (prompt if budget.unit == "frac" else 1)
    asked = context if asked >= prompt else asked
    return abs(tokens - asked) > max(TOLERANCE_FRAC * asked, TOLERANCE_TOKENS)


def _range(rows: pd.DataFrame, unit: str) -> str:
    values = 100 * rows["tokens"] / rows["context"] if unit == "%" else rows["tokens"]
    low, high = (f"{value:.{int(value < 9.95)}f}" for value in (values.min(), values.max()))
    return f"{low}{unit}" if low == high else f"{low}-{high}{unit}"
