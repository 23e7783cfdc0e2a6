"""Ranks of cells: who answers significantly better at no more cost, axis by axis.

A cell's rank on an axis is 1 + the number of cells that cost no more there (2% are no difference)
and answer significantly better on the same prompts: exact sign test, corrected by Holm over the
pairs of a group. Cells of rank 1 are the front: nobody is known to be better for as little. Few
samples tell few cells apart, so they make many ranks of 1.
"""

from collections.abc import Callable
from itertools import combinations
from typing import Any

import numpy as np
import pandas as pd

from retrobench.report.checks.significance import ALPHA, paired, scored
from retrobench.report.headroom import informative
from retrobench.report.rows import step_seconds
from retrobench.stats.intervals import holm, mean_interval
from retrobench.store.row_file import OK

GROUP = ["model", "benchmark", "protocol"]
EQUAL_COST = 1.02


def _bytes(rows: pd.DataFrame, kinds: tuple[str, ...]) -> pd.Series:
    names = [f"live.bytes_per_step.{kind}" for kind in kinds]
    return rows.reindex(columns=names).astype(float).sum(axis=1)


# axis -> (cost of a row, unit, format)
AXES: dict[str, tuple[Callable[[pd.DataFrame], pd.Series], str, str]] = {
    "tokens": (lambda rows: rows["live.attended_tokens"], "tokens attended", ".0f"),
    "hbm": (lambda rows: _bytes(rows, ("kv", "index", "weights")) / 2**20, "MiB read", ".2f"),
    "pcie": (lambda rows: _bytes(rows, ("h2d", "d2h")) / 2**20, "MiB over bus", ".2f"),
    "memory": (lambda rows: rows["footprint.device"] / 2**20, "MiB on device", ".1f"),
    "time": (lambda rows: 1000 * step_seconds(rows), "ms/step", ".1f"),
}
# what a cell that was compared with exact attention says more: name -> column
FIDELITY = {"recall": "fidelity.mean.recall", "output error": "fidelity.mean.error"}
COLUMNS = ["key", "method", "changed", "budget", "engine.batch", "sample", "task", "length"]
COLUMNS += ["status", "score", "prompt_hash", "decode_s", "decode_steps", "footprint.device"]
COLUMNS += ["live.attended_tokens", "live.bytes_per_step.*", "meta.stand_in"]
COLUMNS += ["machine.cpu", "machine.gpu", *FIDELITY.values(), *GROUP]


def ranked(rows: pd.DataFrame) -> pd.DataFrame:
    """One line per cell of a group: mean score with its interval, costs, and a rank for each axis.

    Index: key. A cell with failed samples has no rank, and is better than nobody.
    """
    rows = informative(rows)
    answered = rows[(rows["status"] == OK) & rows["score"].notna()]
    failed = rows[rows["status"] != OK].groupby("key")["status"].count()
    lines = []
    for key, own in answered.groupby("key", sort=False):
        mean, low, high = mean_interval(100 * own["score"].to_numpy(dtype=float))
        costs = {f"{axis}.cost": float(of(own).median()) for axis, (of, *_) in AXES.items()}
        machine = str(own[["machine.cpu", "machine.gpu"]].iloc[0].tolist())
        costs |= {name: own.get(column, pd.Series()).mean() for name, column in FIDELITY.items()}
        known = {"score": mean, "low": low, "high": high, "samples": len(own), "machine": machine}
        lines.append({"key": key, **known, "failed": int(failed.get(key, 0)), **costs})
    table = pd.DataFrame(lines).set_index("key")
    better = _better(answered)
    whole = table.index[table["failed"] == 0]
    for axis in AXES:
        ranks = {key: 1 + _ahead(table, better, key, axis, whole) for key in whole}
        costs = table[f"{axis}.cost"]
        known = costs.notna() & ((costs > 0).any() or axis != "pcie")
        table[f"{axis}.rank"] = pd.Series(ranks, dtype=float).reindex(table.index).where(known)
    return table


def _better(answered: pd.DataFrame) -> set[tuple[str, str]]:
    """Pairs (one, other) of cells of which one answers significantly better."""
    marked = scored(answered)
    cells = {key: own for key, own in marked.groupby("key", sort=False)}
    pairs = [(a, b, paired(cells[a], cells[b])) for a, b in combinations(cells, 2)]
    known = [(a, b, result) for a, b, result in pairs if result is not None]
    found = set()
    for (a, b, result), p in zip(known, holm([r.p_value for *_, r in known]), strict=True):
        if p < ALPHA and result.difference:
            found.add((a, b) if result.difference > 0 else (b, a))
    return found


def _ahead(
    table: pd.DataFrame, better: set[tuple[str, str]], key: str, axis: str, whole: Any
) -> int:
    """Cells that are better than ``key`` for no more cost; times compare on one machine only."""
    costs, machine = table[f"{axis}.cost"], table["machine"]
    return sum(
        (other, key) in better
        and bool(np.less_equal(costs[other], EQUAL_COST * costs[key]))
        and (axis != "time" or machine[other] == machine[key])
        for other in whole
    )
