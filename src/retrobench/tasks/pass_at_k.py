"""pass@k: how often one of k answers to a question is right, from n >= k answers.

The estimate of Chen et al. (arXiv 2107.03374, eq. 1) has no bias. The rate of questions with a
right answer among the first k has none either, but more noise.
"""

from math import comb
from typing import Any

import pandas as pd

from retrobench.store.row_file import OK


def pass_at_k(answers: int, right: int, k: int) -> float:
    """Probability that k answers, drawn from so many without putting back, hold a right one."""
    if not 0 <= right <= answers or not 1 <= k <= answers:
        raise ValueError(f"pass@{k} of {right} right answers among {answers}")
    return 1 - comb(answers - right, k) / comb(answers, k)


def table(rows: pd.DataFrame) -> pd.DataFrame:
    """A row for each cell and question set that has several answers to a question.

    k doubles up to the smallest number of answers that a question has. Questions with a failed
    answer are left out, and counted.
    """
    if "sample" not in rows:
        return pd.DataFrame()
    question = rows["sample"].str.replace(r"/repeat\d+$", "", regex=True)
    found = []
    for (key, task), cell in rows.assign(question=question).groupby(["key", "task"], sort=False):
        whole = cell.groupby("question")["status"].agg(lambda s: bool((s == OK).all()))
        scores = cell[cell["question"].isin(whole.index[whole])].groupby("question")["score"]
        counts = pd.DataFrame({"answers": scores.size(), "right": scores.sum().astype(int)})
        least = int(counts["answers"].min()) if len(counts) else 0
        if least > 1:
            about = {"method": cell.iloc[0]["method"], "key": str(key)[:6], "task": task}
            found.append({**about, **_columns(counts, least), "failed": str(int((~whole).sum()))})
    return pd.DataFrame(found).fillna("")


def _columns(counts: pd.DataFrame, least: int) -> dict[str, Any]:
    """Texts: questions, answers to each, and the mean over questions for each k."""
    found: dict[str, Any] = {"questions": str(len(counts)), "answers": str(least)}
    sizes = [2**power for power in range(least.bit_length())]
    for k in sizes if sizes[-1] == least else [*sizes, least]:
        each = [pass_at_k(row.answers, row.right, k) for row in counts.itertuples()]
        found[f"pass@{k}"] = f"{100 * sum(each) / len(each):.1f}"
    return found
