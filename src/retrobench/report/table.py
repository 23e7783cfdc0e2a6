"""Tables from rows: scores by task and length, then what they cost."""

from __future__ import annotations

from typing import Any

import pandas as pd
from rich.console import Console
from rich.table import Table

from retrobench.report import fidelity_table, speed_table
from retrobench.report.averages import averages
from retrobench.report.beside import beside_published
from retrobench.report.fidelity_table import ATTENTION, OUTPUT, fidelity_matrix
from retrobench.report.speed_table import speed_matrix
from retrobench.report.verdicts import budget_alarms, verdicts
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
COLUMNS += speed_table.COLUMNS
_HELD = ["footprint.device", "footprint.pinned", "footprint.host"]
_UNSUPPORTED = "unsupported_by_model"
_CELL = ["model", "method", "changed", "engine.batch", "budget", "protocol", "key"]
_SHORT = {"single_": "s", "multikey_": "mk", "multivalue": "mv", "multiquery": "mq"}


def score_matrix(frame: pd.DataFrame) -> pd.DataFrame:
    """Mean scores x 100 per cell (rows) and task/length (columns), as text.

    ``n/a``: beyond the model, not averaged. A group with failures shows them (``oom 2/5``) and is
    not averaged either, and the cell then has no average.
    """
    names = _column(frame)
    columns = list(dict.fromkeys(names))
    good = frame["score"].where(frame["status"] == OK)
    by = [frame["key"], names]
    answered = good.notna().groupby(by).all()
    whole = (100 * pd.to_numeric(good).groupby(by).mean())[answered].to_dict()  # the usual case
    rows = []
    for key, cell in frame.groupby("key", sort=False):
        texts, means, failed = {}, [], False
        for name in dict.fromkeys(names[cell.index]):
            mean = whole.get((key, name))
            text = "" if mean is None else f"{mean:.1f}"
            if mean is None:
                text, mean = _group(cell[names[cell.index] == name])
            texts[name] = text
            failed |= mean is None and text not in {"n/a", "-"}
            means += [mean] if mean is not None else []
        average = f"{sum(means) / len(means):.1f}" if means and not failed else "-"
        rows.append({**_labels(cell), **{c: texts.get(c, "") for c in columns}, "avg": average})
    return pd.DataFrame(rows)


def cost_matrix(frame: pd.DataFrame) -> pd.DataFrame:
    """Medians per cell: tokens attended and estimated, seconds, bytes, hit ratio."""
    rows = []
    for _, cell in frame[frame["status"] == OK].groupby("key", sort=False):
        held = cell[_HELD].sum(axis=1)
        moved = moved_bytes(cell)
        steps = cell["decode_steps"].clip(lower=1)
        ratio = cell["live.hit_ratio"].median()
        rows.append(
            {
                **_labels(cell),
                "attended": f"{cell['live.attended_tokens'].median():.0f}",
                "estimated": f"{cell['live.estimated_tokens'].median():.0f}",
                "prefill s": f"{cell['prefill_s'].median():.2f}",
                "seal s": f"{cell['seal_s'].median():.3f}",
                "ms/step": f"{1000 * (cell['decode_s'] / steps).median():.1f}",
                "MiB held": f"{held.median() / 2**20:.1f}",
                "MiB/step": f"{moved.median() / 2**20:.2f}",
                "hit": "" if pd.isna(ratio) else f"{ratio:.2f}",
            }
        )
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
        console.print(_rich(title, _trimmed(matrix)))
    for title, matrix in averages(frame):
        console.print(_rich(title, matrix))
    beside = beside_published(frame)
    if not beside.empty:
        console.print(_rich("published scores beside ours", beside))
    for line in verdicts(frame):
        console.print(f"against full: {line}", markup=False, highlight=False, soft_wrap=True)
    for line in budget_alarms(frame):
        console.print(line, markup=False, highlight=False, soft_wrap=True)
    console.print(caption(frame), style="dim", markup=False, highlight=False)


def _trimmed(matrix: pd.DataFrame) -> pd.DataFrame:
    """Without columns that say nothing."""
    silent = [c for c in ("changed", "backend", "hit") if c in matrix and not matrix[c].any()]
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


def _labels(cell: pd.DataFrame) -> dict[str, Any]:
    first = cell.iloc[0]
    labels = {name: first.get(name) for name in _CELL}
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
        left = column in {*_CELL, "batch"}
        table.add_column(text, justify="left" if left else "right", overflow="fold")
    for values in shown.itertuples(index=False):
        table.add_row(*map(str, values))
    return table
