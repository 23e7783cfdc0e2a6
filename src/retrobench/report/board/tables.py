"""The leaderboard as tables: one for each model, benchmark and protocol.

Its ranks tell who answers significantly better at no more cost, axis by axis. A cell's rank on an
axis is 1 + the number of cells that cost no more there (2% are no difference) and answer
significantly better on the same prompts: exact sign test, corrected by Holm over the pairs of a
group. Cells of rank 1 are the front: nobody is known to be better for as little. Few samples tell
few cells apart, so they make many ranks of 1.
"""

from collections.abc import Callable, Iterator
from itertools import combinations
from typing import Any

import numpy as np
import pandas as pd

from retrobench.core.words import counted
from retrobench.report import headroom
from retrobench.report.board.merge import Merged
from retrobench.report.checks.significance import ALPHA, paired, scored
from retrobench.report.headroom import informative
from retrobench.report.rows import step_seconds, token_count, uses_substitutes
from retrobench.report.tables.labels import each_label
from retrobench.report.tables.layout import number
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

    Index: key. A cell with failed samples has no rank, and is better than nobody. One that answered
    nothing has no score either.
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
    silent = failed.drop(answered["key"].unique(), errors="ignore").items()
    lines += [{"key": key, "samples": 0, "failed": count} for key, count in silent]
    costs = [f"{axis}.cost" for axis in AXES]
    columns = ["key", "score", "low", "high", "samples", "machine", "failed", *costs, *FIDELITY]
    table = pd.DataFrame(lines, columns=columns).set_index("key")
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


NOTE = (
    "rank on an axis: 1 + the cells that cost no more there and answer significantly better on the "
    "same prompts (sign test, Holm); costs: medians of a decode step, all layers; score: mean x "
    "100 with its 95% interval; times are compared on the same machine only; verified: verdict of "
    "samples run again, and how many"
)


def board(merged: Merged, axis: str, split: bool = False) -> Iterator[tuple[str, pd.DataFrame]]:
    """(Title, table as text) of every group of cells, best ranks on ``axis`` first.

    ``split``: a table for every sub-task and length. ValueError if no row has a score.
    """
    frame = headroom.load(merged.store, COLUMNS, None)
    frame = frame[frame["score"].notna() | (frame["status"] != OK)]
    if frame.empty:
        raise ValueError("no scored rows in these folders: a board needs measure=score")
    by = [*GROUP, *(["task", "length"] if split else [])]
    for names, rows in frame.groupby(by, sort=True):
        if headroom.informative(rows).empty:
            continue  # full attention fails there
        model, benchmark, protocol, *part = names
        words = [model, benchmark, *([] if protocol == "query_aware" else [protocol])]
        words += [f"{part[0]} at {token_count(part[1])}"] if part else []
        words += ["(substitute data)"] if uses_substitutes(rows) else []
        yield " ".join(words), _table(merged, rows, axis)


def _table(merged: Merged, rows: pd.DataFrame, axis: str) -> pd.DataFrame:
    found = ranked(rows)
    order = [f"{axis}.rank", "score", f"{axis}.cost"]
    found = found.sort_values(order, ascending=[True, False, True], na_position="last")
    labels = {key: label for (key,), label in each_label(rows)}
    lines = []
    for key, line in found.iterrows():
        own = {
            name: text for name, text in labels[key].items() if name not in ("model", "attended")
        }
        rank = number(line[f"{axis}.rank"], ".0f") or "-"
        flags = list(merged.flags[str(key)])
        if line["failed"]:
            flags.append(counted(int(line["failed"]), "failed sample"))
        lines.append(
            {
                "rank": rank,
                **own,
                "score": f"{line['score']:.1f} [{line['low']:.1f}, {line['high']:.1f}]"
                if line["samples"]
                else "-",
                "samples": f"{line['samples']:.0f}",
                **{name: number(line[name], ".3f") for name in FIDELITY},
                **{unit: _cost(line, name) for name, (_, unit, _) in AXES.items()},
                "source": ", ".join(map(str, merged.sources[str(key)])),
                "verified": merged.verified[str(key)],
                "flags": "; ".join(flags),
            }
        )
    table = pd.DataFrame(lines)
    optional = ["changed", "protocol", "batch", *FIDELITY, "verified", "flags"]
    return table.drop(columns=[n for n in optional if n in table and not table[n].any()])


def _cost(line: pd.Series, axis: str) -> str:
    """A cost with the rank on its axis; empty where the axis has none (nothing over the bus)."""
    rank = number(line[f"{axis}.rank"], ".0f")
    text = number(line[f"{axis}.cost"], AXES[axis][2])
    return f"{text} ({rank})" if rank else text


def sources(merged: Merged) -> list[str]:
    """A line for each folder: its number, and how many of its cells are shown."""
    lines = []
    for number_, folder in enumerate(merged.folders, 1):
        own = [numbers for numbers in merged.sources.values() if number_ in numbers]
        shown = sum(numbers[0] == number_ for numbers in own)
        lines.append(f"source {number_}: {folder}, {counted(len(own), 'cell')}, {shown} shown")
    return lines
