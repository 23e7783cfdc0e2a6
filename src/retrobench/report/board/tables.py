"""The leaderboard as tables: one for each model, benchmark and protocol."""

from collections.abc import Iterator

import pandas as pd

from retrobench.core.words import counted
from retrobench.report import headroom
from retrobench.report.board.merge import Merged
from retrobench.report.board.rank import AXES, COLUMNS, FIDELITY, GROUP, ranked
from retrobench.report.rows import token_count, uses_substitutes
from retrobench.report.tables.labels import each_label
from retrobench.report.tables.layout import number
from retrobench.store.row_file import OK

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
        if not headroom.informative(rows)["score"].notna().any():
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
                "score": f"{line['score']:.1f} [{line['low']:.1f}, {line['high']:.1f}]",
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
