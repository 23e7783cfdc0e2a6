"""Main effects and interactions of a sweep as a table."""

import pandas as pd
from rich.console import Console

from retrobench.report.headroom import informative
from retrobench.report.rows import moved_bytes, step_seconds
from retrobench.report.tables.layout import print_table
from retrobench.stats.effects import Effect, interactions, main_effects
from retrobench.store.row_file import OK

RESPONSES = {
    "score": lambda rows: rows["score"] * 100,
    "seal_s": lambda rows: rows["seal_s"],
    "step_s": step_seconds,
    "step_mib": lambda rows: moved_bytes(rows) / 2**20,
    "hit_ratio": lambda rows: rows["live.hit_ratio"],
    "recall": lambda rows: rows["fidelity.mean.recall"],
}
_SETTINGS = ["model", "method", "budget", "protocol", "engine.batch", "length"]


def effects(frame: pd.DataFrame, response: str) -> tuple[list[Effect], list[Effect]]:
    """(main effects, interactions) on a response; ValueError if the rows do not allow them."""
    if response not in RESPONSES:
        raise ValueError(f"--of {response}: choose from {', '.join(RESPONSES)}")
    rows = frame[frame["status"] == OK]
    if response == "score":
        rows = informative(rows)
    rows = rows.assign(response=RESPONSES[response](rows)).dropna(subset=["response"])
    options = [c for c in rows if c.startswith("method.")]
    names = [c for c in [*_SETTINGS, *options] if c in rows]
    varying = [c for c in names if rows[c].nunique(dropna=False) > 1]
    if not varying:
        raise ValueError("effects need cells that differ in an option, a method or a budget")
    filled = {c: rows[c].astype(object).where(rows[c].notna(), "default") for c in varying}
    rows = rows.assign(**filled)
    unit = rows["task"] + "/" + rows["sample"].str.split("/").str[-1]
    unit = rows["sample"] if "length" not in varying else unit
    table = rows.assign(unit=unit).pivot_table(index=varying, columns="unit", values="response")
    table = table.dropna(axis=1)
    if table.empty or len(table) < 2:
        raise ValueError(f"no sample has {response} in every cell of this selection")
    return main_effects(table), interactions(table)


def print_effects(found: list[Effect], title: str, console: Console) -> None:
    """A table: one line per level or pair of levels, with its interval."""
    rows = []
    for effect in found:
        names = " x ".join(name.removeprefix("method.") for name in effect.factors)
        levels = " x ".join(map(_text, effect.levels))
        interval = f"{effect.low:+.3g} to {effect.high:+.3g}"
        rows.append((names, levels, f"{effect.value:+.3g}", interval, effect.samples))
    columns = ("option", "level", "effect", "95% interval", "samples")
    print_table(console, title, columns, rows, left=columns[:2])


def _text(level: object) -> str:
    return f"{level:g}" if isinstance(level, float) else str(level)
