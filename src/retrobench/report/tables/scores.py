"""Tables from rows: scores by task and length, then what they cost."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pandas as pd
from rich.console import Console
from rich.table import Table
from rich.text import Text

from retrobench.report.checks.compare_published import beside_published
from retrobench.report.checks.significance import budget_alarms, order_alarms, verdicts
from retrobench.report.tables import fidelity as fidelity_table
from retrobench.report.tables import machine as machine_table
from retrobench.report.tables import speed as speed_table
from retrobench.report.tables.averages import averages
from retrobench.report.tables.fidelity import ATTENTION, OUTPUT, fidelity_matrix
from retrobench.report.tables.speed import speed_matrix
from retrobench.store.results import OK

# what the tables and verdicts read of a row (see store.columns)
COLUMNS = (
    "key model method changed benchmark protocol budget engine.batch sample task length status "
    "score prompt_hash prefill_s seal_s decode_s decode_steps meta.stand_in meta.depth meta.words "
    "meta.e meta.difficulty meta.length_class "
    "live.attended_tokens live.estimated_tokens live.hit_ratio "
    "live.bytes_per_step.kv live.bytes_per_step.index live.bytes_per_step.h2d "
    "live.bytes_per_step.d2h live.bytes_per_step.weights "
    "footprint.device footprint.pinned footprint.host"
).split() + fidelity_table.COLUMNS
COLUMNS += speed_table.COLUMNS + machine_table.COLUMNS
_HELD = ["footprint.device", "footprint.pinned", "footprint.host"]
_COST_DIGITS = {"attended": 0, "estimated": 0, "prefill s": 2, "seal s": 3, "ms/step": 1}
_COST_DIGITS |= {"MiB held": 1, "MiB/step": 2, "hit": 2}
_UNSUPPORTED = "unsupported_by_model"
_MOST_COLUMNS = 12  # cells side by side in a turned table
_CELL = ["model", "method", "changed", "engine.batch", "budget", "protocol", "key"]
_SHORT = {"single_": "s", "multikey_": "mk", "multivalue": "mv", "multiquery": "mq"}


def score_matrix(frame: pd.DataFrame) -> pd.DataFrame:
    """Mean scores x 100 per cell (rows) and task/length (columns), as text.

    ``n/a``: beyond the model, not averaged. A group with failures shows them (``oom 2/5``) and is
    not averaged either, and the cell then has no average.
    """
    names = _column(frame)
    columns = list(names.unique())
    good = pd.to_numeric(frame["score"].where(frame["status"] == OK))
    entries = good.groupby([frame["key"], names], sort=False)
    whole = (100 * entries.mean())[entries.size() == entries.count()]  # the usual case
    texts: dict[str, dict[str, str]] = {key: {} for key in frame["key"].unique()}
    means: dict[str, list[float]] = {key: [] for key in texts}
    for (key, name), mean in whole.items():
        texts[key][name] = f"{mean:.1f}"
        means[key].append(mean)
    failed = set()
    odd = frame[~pd.MultiIndex.from_arrays([frame["key"], names]).isin(whole.index)]
    for (key, name), group in odd.groupby([odd["key"], names[odd.index]], sort=False):
        texts[key][name], mean = _group(group)
        if mean is not None:
            means[key].append(mean)
        elif texts[key][name] not in {"n/a", "-"}:
            failed.add(key)
    rows = []
    for key, labels in _each_label(frame):
        average = "-" if key in failed or not means[key] else f"{np.mean(means[key]):.1f}"
        own = {name: texts[key].get(name, "") for name in columns}
        rows.append({**labels, **own, "avg": average})
    return pd.DataFrame(rows)


def cost_matrix(frame: pd.DataFrame) -> pd.DataFrame:
    """Medians per cell: tokens attended and estimated, seconds, bytes, hit ratio."""
    good = frame[frame["status"] == OK]
    values = pd.DataFrame(
        {
            "attended": good["live.attended_tokens"],
            "estimated": good["live.estimated_tokens"],
            "prefill s": good["prefill_s"],
            "seal s": good["seal_s"],
            "ms/step": 1000 * good["decode_s"] / good["decode_steps"].clip(lower=1),
            "MiB held": good[_HELD].sum(axis=1) / 2**20,
            "MiB/step": moved_bytes(good) / 2**20,
            "hit": good["live.hit_ratio"],
        },
        dtype=float,
    )
    medians = values.groupby(good["key"], sort=False).median()
    rows = []
    for key, labels in _each_label(good):
        own = medians.loc[key]
        texts = {name: f"{own[name]:.{digits}f}" for name, digits in _COST_DIGITS.items()}
        rows.append({**labels, **{n: "" if pd.isna(own[n]) else t for n, t in texts.items()}})
    return pd.DataFrame(rows)


def moved_bytes(frame: pd.DataFrame) -> pd.Series:
    """Bytes that a decode step read or copied, over all layers."""
    return frame.filter(like="live.bytes_per_step.").sum(axis=1)


def niah_matrix(frame: pd.DataFrame) -> pd.DataFrame:
    """Mean score by depth (rows, percent) and length (columns)."""
    rows = frame[(frame["status"] == OK) & (frame["task"] == "niah")]
    rows = rows.rename(columns={"meta.depth": "depth"})
    return rows.pivot_table(index="depth", columns="length", values="score", aggfunc="mean")


def print_tables(frame: pd.DataFrame, console: Console) -> None:
    """Scores, costs, and what every reader must know about them."""
    if frame.empty:
        console.print("no rows yet")
        return
    timed = frame["benchmark"] == "speed"
    if timed.any():
        title = "decode speed (medians over steps)"
        console.print(_rich(title, _trimmed(speed_matrix(frame[timed], _labels))))
        frame = frame[~timed]
    probed = frame["benchmark"] == "machine"
    if probed.any():
        matrix = machine_table.machine_matrix(frame[probed])
        console.print(_rich("what this machine reaches (medians)", matrix))
        frame = frame[~probed]
    if frame.empty:
        return
    models = sorted(set(frame["model"]))
    for title, matrix in (
        ("scores (x100)", score_matrix(frame)),
        ("cost (medians)", cost_matrix(frame)),
        ("attention and logits against full", fidelity_matrix(frame, _labels, ATTENTION)),
        ("relative output error", fidelity_matrix(frame, _labels, OUTPUT)),
    ):
        if matrix.empty:
            continue
        if len(models) == 1:
            title, matrix = f"{models[0]}: {title}", matrix.drop(columns="model")
        _print_fitting(title, _trimmed(matrix), console)
    for title, matrix in averages(frame):
        console.print(_rich(title, matrix))
    beside = beside_published(frame)
    if not beside.empty:
        console.print(_rich("published scores beside ours", beside))
    lines = [f"against full: {line}" for line in verdicts(frame)]
    for line in (*lines, *budget_alarms(frame), *order_alarms(frame)):
        style = "bold red" if "ALARM" in line else None
        console.print(line, style=style, markup=False, highlight=False, soft_wrap=True)
    console.print(caption(frame), style="dim", markup=False, highlight=False)


def _print_fitting(title: str, matrix: pd.DataFrame, console: Console) -> None:
    """Print a table; one that is too wide is turned (a column per cell), where that fits."""
    table = _rich(title, matrix)
    if len(matrix) <= _MOST_COLUMNS and _width(table, console) > console.width:
        turned = _rich(title, _turned(matrix))
        if _width(turned, console) < _width(table, console):
            table = turned
    console.print(table)


def _width(table: Table, console: Console) -> int:
    """Columns that a table takes without folding any text."""
    free = console.options.update(width=10_000)
    return console.measure(table, options=free).maximum


def _turned(matrix: pd.DataFrame) -> pd.DataFrame:
    heads = matrix["method"] + "\n" + matrix["key"]
    turned = matrix.drop(columns=["method", "key"]).T
    turned.columns = list(heads)
    turned.insert(0, "", [str(name) for name in turned.index])
    return turned


def _trimmed(matrix: pd.DataFrame) -> pd.DataFrame:
    """Without columns that say nothing."""
    optional = ("changed", "backend", "hit", "hidden", "prefill s")
    silent = [c for c in optional if c in matrix and not matrix[c].any()]
    return matrix.drop(columns=silent)


def caption(frame: pd.DataFrame) -> str:
    """Samples per group, protocol, stand-in data, failures."""
    counts = frame.groupby(["key", "task", "length"]).size()
    few, many = counts.min(), counts.max()
    notes = [f"{few} samples per entry" if few == many else f"{few}-{many} samples per entry"]
    protocols = sorted(set(frame["protocol"]))
    notes.append(f"protocol: {', '.join(protocols)}")
    if stand_in(frame):
        notes.append("stand-in data: not comparable with published scores")
    if (frame["status"] == _UNSUPPORTED).any():
        notes.append("n/a: beyond the model, not averaged")
    return "; ".join(notes)


def stand_in(frame: pd.DataFrame) -> bool:
    """Whether any row used stand-in data."""
    return "meta.stand_in" in frame and bool(frame["meta.stand_in"].eq(True).any())


def _group(group: pd.DataFrame) -> tuple[str, float | None]:
    statuses = group["status"].astype(object)
    bad = statuses[~statuses.isin([OK, _UNSUPPORTED])]
    if len(bad):
        return f"{bad.mode().iloc[0]} {len(bad)}/{len(group)}", None
    if (statuses == _UNSUPPORTED).all():
        return "n/a", None
    mean = 100 * pd.to_numeric(group.loc[statuses == OK, "score"]).mean()
    if pd.isna(mean):
        return "-", None  # measured, but not scored
    return f"{mean:.1f}", mean


def _column(frame: pd.DataFrame) -> pd.Series:
    name = frame["task"].str.replace("niah_", "", regex=False)
    for long, short in _SHORT.items():
        name = name.str.replace(long, short, regex=False)
    length = "@" + (frame["length"] / 1024).map("{:g}K".format)
    return name + length.where(frame["length"] > 0, "")


def _each_label(frame: pd.DataFrame) -> Iterator[tuple[str, dict[str, Any]]]:
    """Key and labels of every cell, in the order of the rows."""
    for first in frame.drop_duplicates("key").reindex(columns=_CELL).to_dict("records"):
        yield first["key"], _label(first)


def _labels(cell: pd.DataFrame) -> dict[str, Any]:
    return _label({name: cell[name].iat[0] if name in cell else None for name in _CELL})


def _label(first: dict[str, Any]) -> dict[str, Any]:
    labels = dict(first)
    labels["key"] = labels["key"][:6]
    if not labels["changed"] or pd.isna(labels["changed"]):
        labels["changed"] = ""
    if labels["protocol"] == "query_aware":
        labels.pop("protocol")
    if labels["budget"] is None or pd.isna(labels["budget"]):
        labels["budget"] = "default"
    batch = labels.pop("engine.batch")
    if batch > 1:
        labels["batch"] = f"{batch:.0f}"
    return labels


def _rich(title: str, matrix: pd.DataFrame) -> Table:
    shown = matrix.fillna("")
    lengths = {str(c).split("@")[1] for c in shown.columns if "@" in str(c)}
    table = Table(title=f"{title} at {lengths.pop()}" if len(lengths) == 1 else title)
    single = len(lengths) == 0
    for column in shown.columns:
        text = str(column).split("@")[0] if single else str(column)
        left = column in {*_CELL, "batch", ""}
        table.add_column(text, justify="left" if left else "right", overflow="fold")
    for values in shown.itertuples(index=False):
        table.add_row(*(Text(str(value)) for value in values))
    return table
