"""Published numbers, each with its source, and ours beside them; nothing was read off a plot."""

from pathlib import Path

import pandas as pd

from retrobench.report.benchmarks import benchmark
from retrobench.report.rows import token_count
from retrobench.store.row_file import OK

# scores in percent, lengths in tokens; ``model``: part of the model's name, in lower case. By task:
# RetrievalAttention's Table 9 (128K, Llama-3-8B-Instruct-Gradient-262k)
SCORES = pd.read_csv(Path(__file__).with_name("published.csv"))

# RetroInfer v3 (PVLDB 19(5), arXiv 2505.02922v3): its defaults, marked in sensitivity figures
RETROINFER = "RetroInfer v3"
HIT_RATIO = (0.79, 0.94)  # section 4.3: across tasks, 5% cache, 128K
DEFAULTS = {
    "tokens_per_cluster": 16,
    "segment_tokens": 8192,
    "retrieval_frac": 0.018,
    "estimation_frac": 0.232,
    "cache_frac": 0.05,
    "page_tokens": 8,
    "kmeans_iterations": 10,
}


def compare_published(frame: pd.DataFrame) -> pd.DataFrame:
    """One row for each published value that the rows have a score for; empty without any."""
    rows = []
    for key, cell in frame.groupby("key", sort=False):
        first = cell.iloc[0]
        fitting = [
            known
            for known in SCORES.itertuples()
            if known.model in str(first["model"]).lower()
            and (known.benchmark, known.method) == (first["benchmark"], first["method"])
        ]
        ours = _scores(cell) if fitting else {}
        budget = first.get("budget")
        for known in fitting:
            mean = ours.get((known.task, known.length))
            if mean is not None:
                rows.append(
                    {
                        "method": known.method,
                        "budget": "default" if pd.isna(budget) else budget,
                        "key": str(key)[:6],
                        "task": known.task,
                        "length": token_count(known.length),
                        "paper": f"{known.score:.1f}",
                        "ours": f"{mean:.1f}",
                        "difference": f"{mean - known.score:+.1f}",
                        "source": known.source,
                    }
                )
    return pd.DataFrame(rows)


def _scores(cell: pd.DataFrame) -> dict[tuple[str, int], float]:
    """Means in percent by task and length; ``avg`` where every task of the benchmark is whole."""
    found: dict[tuple[str, int], float] = {}
    num_tasks = benchmark(cell["benchmark"].iloc[0]).num_tasks
    for length, at_length in cell.groupby("length"):
        whole = {
            (str(task), int(length)): 100 * float(group["score"].mean())
            for task, group in at_length.groupby("task")
            if (group["status"] == OK).all()
        }
        found |= whole
        if num_tasks and len(whole) == num_tasks:
            found["avg", int(length)] = sum(whole.values()) / num_tasks
    return found
