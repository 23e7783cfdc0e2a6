"""Decoded tokens per second of benchmark runs: by cache manager and batch, and the best by task."""

from typing import Any

import pandas as pd

from retrobench.report.figures import parts, style
from retrobench.report.rows import default_options, one_budget, require
from retrobench.store.row_file import OK

ASIDE = ", updated aside"
_COUNTED = "; an answer counts until the longest of its batch ends"
ARMS = ("none", "host", f"host{ASIDE}", "device", f"device{ASIDE}")


def buffer_ablation(frame: pd.DataFrame) -> Any:
    """Tokens per second against the batch, a line per cache manager and update (paper Fig. 16)."""
    command = "python run.py -m experiment=buffer_ablation"
    require("method.cache" in frame, "no rows with method.cache", command)
    varied = r"\b(?:cache|async_update)=\w+"
    apart = frame["changed"].fillna("").str.replace(varied, "", regex=True).str.strip() == ""
    rows = frame[(frame["method"] == "retroinfer") & apart & frame["method.cache"].notna()]
    rows = one_budget(rows)
    aside = rows["changed"].fillna("").str.contains(r"\basync_update=true", case=False)
    rows = rows.assign(arm=rows["method.cache"].where(~aside, rows["method.cache"] + ASIDE))
    lines = [name for name in ARMS if (rows["arm"] == name).any()]
    timed = rows[(rows["status"] == OK) & (rows["engine.batch"] > 1)]
    require(len(lines) > 1 and len(timed), "needs two cache managers and a batch above 1", command)
    rows = rows[rows["arm"].isin(lines) & (rows["length"] == timed["length"].mode()[0])]
    drawing, (axes,) = style.figure(2.6)
    for i, name in enumerate(lines):
        look = {"color": style.COLORS[i], "marker": style.MARKERS[i], "label": f"cache={name}"}
        _batch_line(axes, rows[rows["arm"] == name], look, i)
    parts.batch_axis(axes, rows["engine.batch"])
    return style.finish(drawing, rows, ["arm", "engine.batch"], _COUNTED)


def _batch_line(axes: Any, rows: pd.DataFrame, look: dict[str, Any], order: int) -> None:
    """Median tokens per second by batch with quartiles; a batch that ran out of memory says OOM."""
    rates = {n: parts.quartiles(own["rate"]) for n, own in _rates(rows).groupby("engine.batch")}
    parts.interval_line(axes, [(batch, *rate) for batch, rate in rates.items()], **look)
    failed = set(rows.loc[rows["status"] == "oom", "engine.batch"]) - set(rates)
    parts.out_of_memory(axes, failed, look["color"], order)


def max_throughput_by_task(frame: pd.DataFrame) -> Any:
    """The best tokens per second over batch sizes, bars by task and method (paper Fig. 14a).

    The number on a bar is the batch that reached it; quartiles are over that batch's samples.
    """
    rows = _batched_rows(frame)
    tasks, methods = list(dict.fromkeys(_rates(rows)["task"])), style.by_method(rows)
    drawing, (axes,) = style.figure(2.6, width=style.TWO_COLUMNS)
    for index, (method, own) in enumerate(methods.items()):
        axes.bar([0], [0], color=style.color(method), label=method)
        for x, task in enumerate(tasks):
            slot = (index, len(methods))
            _best_batch_bar(axes, own[own["task"] == task], x, slot, style.color(method))
    parts.task_axis(axes, rows, tasks)
    axes.set_ylabel("tokens/s at the best batch")
    axes.margins(y=0.1)
    points = ["method", "task", "engine.batch"]
    return style.finish(drawing, rows, points, f"; on the bars: batch{_COUNTED}")


def _batched_rows(frame: pd.DataFrame) -> pd.DataFrame:
    """RULER rows of methods as they come, at the usual length of batches above 1."""
    command = "python run.py -m experiment=max_throughput_by_task"
    rows = frame[frame["benchmark"] == "ruler"]
    require((rows["engine.batch"] > 1).any(), "needs batches above 1 of task=ruler", command)
    rows = rows[default_options(rows) & rows["budget"].isna()]
    batched = rows.loc[rows["engine.batch"] > 1, "length"]
    rows = rows[rows["length"].isin(batched.mode().head(1))]
    require(len(_rates(rows)), "no timed rows", command)
    return rows


def _best_batch_bar(
    axes: Any, rows: pd.DataFrame, x: float, slot: tuple[int, int], color: str
) -> None:
    """One bar at the batch with the highest median rate; OOM where every batch failed so."""
    rates = [
        (parts.quartiles(own["rate"]), batch) for batch, own in _rates(rows).groupby("engine.batch")
    ]
    if rates:
        rate, batch = max(rates, key=lambda entry: entry[0][0])
        parts.interval_bar(axes, x, slot, rate, color=color)
        top = (parts.slot_place(x, slot), rate[2])
        parts.beside_point(axes, f"{batch:g}", top, xytext=(0, 1.5), ha="center")
    elif (rows["status"] == "oom").any():
        parts.out_of_memory(axes, [parts.slot_place(x, slot)], color)


def _rates(rows: pd.DataFrame) -> pd.DataFrame:
    """Answered rows with their session's tokens per second (``rate``)."""
    good = rows[(rows["status"] == OK) & (rows["decode_s"] > 0)]
    return good.assign(rate=good["batch"] * good["decode_steps"] / good["decode_s"])


FIGURES = {draw.__name__: draw for draw in (buffer_ablation, max_throughput_by_task)}
