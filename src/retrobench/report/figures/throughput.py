"""Decoded tokens per second of benchmark runs: by cache manager and batch, and the best by task."""

from __future__ import annotations

from typing import Any

import pandas as pd

from retrobench.report.figures import style
from retrobench.report.figures.style import NotEnoughRows
from retrobench.report.rows import say
from retrobench.store.results import OK


def buffer_ablation(frame: pd.DataFrame) -> Any:
    """Tokens per second against the batch, a line per cache manager (paper Fig. 16)."""
    command = "python run.py -m experiment=buffer_ablation"
    if "method.cache" not in frame:
        raise NotEnoughRows(f"no rows with method.cache: {command}")
    apart = frame["changed"].fillna("").str.replace(r"cache=\w+", "", regex=True).str.strip() == ""
    rows = frame[(frame["method"] == "retroinfer") & apart & frame["method.cache"].notna()]
    lines = [name for name in ("none", "host", "device") if (rows["method.cache"] == name).any()]
    timed = rows[(rows["status"] == OK) & (rows["engine.batch"] > 1)]
    if len(lines) < 2 or timed.empty:
        raise NotEnoughRows(f"needs two cache managers and a batch above 1: {command}")
    rows = rows[rows["method.cache"].isin(lines) & (rows["length"] == timed["length"].mode()[0])]
    drawing, axes = style.figure(style.ONE_COLUMN, 2.6)
    for i, name in enumerate(lines):
        own = rows[rows["method.cache"] == name]
        look = {"color": style.COLORS[i], "marker": style.MARKERS[i]}
        _batch_line(axes, own, f"cache={name}", look, i)
    style.batch_axis(axes, rows["engine.batch"])
    drawing.legend(loc="outside upper center", ncols=len(lines))
    style.note(drawing, say(rows, ["method.cache", "engine.batch"]))
    return style.uses(drawing, rows["key"])


def max_throughput_by_task(frame: pd.DataFrame) -> Any:
    """The best tokens per second over batch sizes, bars by task and method (paper Fig. 14a).

    The number on a bar is the batch that reached it; quartiles are over that batch's samples.
    """
    command = "python run.py -m experiment=max_throughput_by_task"
    rows = frame[frame["benchmark"] == "ruler"] if len(frame) else frame
    if rows.empty or not (rows["engine.batch"] > 1).any():
        raise NotEnoughRows(f"needs batches above 1 of task=ruler: {command}")
    rows = rows[(rows["changed"].fillna("") == "") & rows["budget"].isna()]
    rows = rows[rows["length"] == rows.loc[rows["engine.batch"] > 1, "length"].mode().iloc[0]]
    rates = _rates(rows)
    if rates.empty:
        raise NotEnoughRows(f"no timed rows: {command}")
    tasks, methods = list(dict.fromkeys(rates["task"])), style.ordered(rows["method"].unique())
    drawing, axes = style.figure(style.TWO_COLUMNS, 2.6)
    width = 0.8 / len(methods)
    for i, method in enumerate(methods):
        color = style.color(method)
        axes.bar([0], [0], color=color, label=method)
        for x, task in enumerate(tasks):
            place = x + (i - (len(methods) - 1) / 2) * width
            own = rates[(rates["task"] == task) & (rates["method"] == method)]
            if own.empty:
                failed = rows[(rows["task"] == task) & (rows["method"] == method)]
                if (failed["status"] == "oom").any():
                    style.out_of_memory(axes, [place], color)
                continue
            by_batch = own.groupby("engine.batch")["rate"].quantile([0.25, 0.5, 0.75]).unstack()
            best = by_batch[0.5].idxmax()
            low, middle, high = by_batch.loc[best]
            error = {"elinewidth": 0.8, "capsize": 1.5, "ecolor": "#777777"}
            spread = [[middle - low], [high - middle]]
            axes.bar(place, middle, width * 0.92, yerr=spread, color=color, error_kw=error)
            axes.annotate(
                f"{best:g}",
                (place, high),
                xytext=(0, 1.5),
                textcoords="offset points",
                ha="center",
                fontsize=6,
            )
    axes.set_xticks(range(len(tasks)), [t.replace("niah_", "").replace("_", " ") for t in tasks])
    axes.set_ylabel("tokens/s at the best batch")
    axes.grid(axis="x", visible=False)
    axes.margins(y=0.1)
    drawing.legend(loc="outside upper center", ncols=len(methods))
    style.note(drawing, f"{say(rows, ['method', 'task', 'engine.batch'])}; on the bars: batch")
    return style.uses(drawing, rows["key"])


def _batch_line(
    axes: Any, rows: pd.DataFrame, label: str, look: dict[str, Any], order: int
) -> None:
    """Median tokens per second by batch with quartiles; a batch that ran out of memory says OOM."""
    good = _rates(rows)
    groups = good.groupby("engine.batch")["rate"]
    middle, low, high = groups.median(), groups.quantile(0.25), groups.quantile(0.75)
    errors = [middle - low, high - middle]
    axes.errorbar(middle.index, middle, yerr=errors, label=label, linewidth=1.2, capsize=2, **look)
    failed = set(rows.loc[rows["status"] == "oom", "engine.batch"]) - set(middle.index)
    style.out_of_memory(axes, failed, look["color"], order)


def _rates(rows: pd.DataFrame) -> pd.DataFrame:
    """Answered rows with their session's tokens per second (``rate``)."""
    good = rows[(rows["status"] == OK) & (rows["decode_s"] > 0)]
    return good.assign(rate=good["batch"] * good["decode_steps"] / good["decode_s"])


FIGURES = {
    "buffer_ablation": buffer_ablation,
    "max_throughput_by_task": max_throughput_by_task,
}
