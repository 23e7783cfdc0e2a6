"""What a method costs: accuracy against bytes, prefill by part, a decode step by part."""

from __future__ import annotations

from typing import Any

import pandas as pd

from retrobench.report import style
from retrobench.report.rows import say, scored, shared_samples
from retrobench.report.style import NotEnoughRows
from retrobench.report.table import moved_bytes
from retrobench.stats.intervals import mean_interval
from retrobench.store.results import OK

_PARETO = "python run.py -m experiment=pareto_accuracy_bytes"
_PREFILL = "python run.py -m experiment=prefill_breakdown"


def pareto_accuracy_bytes(frame: pd.DataFrame) -> Any:
    """Mean score against bytes moved per decode step: one point per cell, on shared samples."""
    rows = scored(frame, "ruler", _PARETO)
    rows = rows[rows["budget"].notna() | (rows["method"] == "full")]
    rows = rows[rows["length"] == rows["length"].mode().iloc[0]] if len(rows) else rows
    rows = shared_samples(rows, "key")
    if rows["key"].nunique() < 3:
        raise NotEnoughRows(f"needs three cells with budgets on the same samples: {_PARETO}")
    drawing, axes = style.figure(style.ONE_COLUMN, 2.7)
    for method in style.ordered(rows["method"].unique()):
        points = []
        for _, cell in rows[rows["method"] == method].groupby("key"):
            mib = moved_bytes(cell).median() / 2**20
            points.append((mib, *mean_interval(cell["score"] * 100)))
        x, mean, low, high = zip(*sorted(points), strict=True)
        errors = [[m - l for m, l in zip(mean, low, strict=True)]]
        errors += [[h - m for m, h in zip(mean, high, strict=True)]]
        look = {"marker": style.marker(method), "color": style.color(method), "label": method}
        axes.errorbar(x, mean, yerr=errors, linewidth=1.2, capsize=2, **look)
    axes.set_xscale("log")
    axes.set_xlabel("MiB moved per decode step")
    axes.set_ylabel("score")
    axes.set_ylim(-3, 105)
    drawing.legend(loc="outside upper center", ncols=3)
    style.note(drawing, say(rows, ["key"]))
    return style.uses(drawing, rows["key"])


def prefill_breakdown(frame: pd.DataFrame) -> Any:
    """Seconds of prefill and of index build, stacked, by length and method (paper Fig. 15)."""
    rows = frame[(frame["status"] == OK) & frame["prefill_s"].notna()] if len(frame) else frame
    if rows.empty:
        raise NotEnoughRows(f"no timed rows: {_PREFILL}")
    rows = rows[(rows["changed"].fillna("") == "") & (rows["engine.batch"] == 1)]
    rows = rows[rows["length"] > 0]  # benchmarks with a length of their own
    both = rows.groupby("method")["seal_s"].median()
    if len(both) < 2:
        raise NotEnoughRows(f"needs full attention and a method that builds an index: {_PREFILL}")
    methods, lengths = style.ordered(both.index), sorted(rows["length"].unique())
    drawing, axes = style.figure(style.ONE_COLUMN, 2.7)
    width = 0.8 / len(methods)
    for i, method in enumerate(methods):
        own = rows[rows["method"] == method].groupby("length")[["prefill_s", "seal_s"]].median()
        places = [lengths.index(n) + (i - (len(methods) - 1) / 2) * width for n in own.index]
        look = {"width": width * 0.92, "color": style.color(method)}
        axes.bar(places, own["prefill_s"], label=method, **look)
        axes.bar(places, own["seal_s"], bottom=own["prefill_s"], hatch="////", alpha=0.5, **look)
    axes.bar([0], [0], color="white", edgecolor="#555555", hatch="////", label="index build")
    axes.set_xticks(range(len(lengths)), [style.tokens(n) for n in lengths])
    axes.set_xlabel("context (tokens)")
    axes.set_ylabel("prefill (s)")
    axes.grid(axis="x", visible=False)
    drawing.legend(loc="outside upper center", ncols=3)
    style.note(drawing, say(rows, ["method", "length"]))
    return style.uses(drawing, rows["key"])


def step_breakdown(frame: pd.DataFrame) -> Any:
    """Milliseconds of a decode step by part, for cells with ``measure=latency``."""
    command = "python run.py -m method=full,retroinfer measure=latency"
    spans = [c for c in frame if c.startswith("live.span_s.")]
    rows = frame[frame[spans].notna().any(axis=1)] if spans else frame.iloc[:0]
    if rows.empty:
        raise NotEnoughRows(f"no timed parts: {command}")
    rows = rows[rows["length"] == rows["length"].max()]
    steps = rows["decode_steps"].clip(lower=1)
    parts = rows[spans].div(steps, axis=0).mul(1000).groupby(rows["method"]).median()
    methods = style.ordered(parts.index)
    drawing, axes = style.figure(style.ONE_COLUMN, 0.9 + 0.4 * len(methods))
    left = pd.Series(0.0, index=methods)
    for i, span in enumerate(spans):
        values = parts.loc[methods, span].fillna(0)
        name = span.removeprefix("live.span_s.")
        color = style.COLORS[1:][i % 7]
        axes.barh(methods, values, left=left, color=color, label=name)
        left += values
    axes.invert_yaxis()
    axes.set_xlabel("ms per decode step, all layers")
    axes.grid(axis="y", visible=False)
    drawing.legend(loc="outside upper center", ncols=4)
    style.note(drawing, say(rows, ["method"]))
    return style.uses(drawing, rows["key"])


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
        throughput_line(axes, own, f"cache={name}", look, shift=i)
    axes.set_xlabel("batch")
    axes.set_ylabel("tokens/s")
    axes.set_ylim(bottom=0)
    batches = sorted(rows["engine.batch"].unique())
    axes.set_xscale("log", base=2)
    axes.minorticks_off()
    axes.set_xticks(batches, [f"{batch:g}" for batch in batches])
    drawing.legend(loc="outside upper center", ncols=len(lines))
    style.note(drawing, say(rows, ["method.cache", "engine.batch"]))
    return style.uses(drawing, rows["key"])


def throughput_line(
    axes: Any, rows: pd.DataFrame, label: str, look: dict[str, Any], shift: int = 0
) -> None:
    """Median tokens per second by batch with quartiles; a batch that ran out of memory says OOM."""
    good = rows[(rows["status"] == OK) & (rows["decode_s"] > 0)]
    rate = good["batch"] * good["decode_steps"] / good["decode_s"]
    groups = rate.groupby(good["engine.batch"])
    middle, low, high = groups.median(), groups.quantile(0.25), groups.quantile(0.75)
    errors = [middle - low, high - middle]
    axes.errorbar(middle.index, middle, yerr=errors, label=label, linewidth=1.2, capsize=2, **look)
    for batch in sorted(set(rows.loc[rows["status"] == "oom", "engine.batch"])):
        place = (batch, 0.03 + 0.07 * shift)
        where = {"xycoords": ("data", "axes fraction"), "ha": "center", "fontsize": 6}
        axes.annotate("OOM", place, color=look["color"], **where)


def estimation_on_off(frame: pd.DataFrame) -> Any:
    """Score per task with and without the estimation zone (paper Fig. 19a)."""
    command = "python run.py -m experiment=estimation_on_off"
    rows = scored(frame, "ruler", command)
    if "method.estimation_frac" not in rows:
        raise NotEnoughRows(f"no rows of retroinfer: {command}")
    rows = rows[(rows["method"] == "retroinfer") & rows["budget"].isna()]
    only = rows["changed"].fillna("").str.fullmatch(r"(estimation_frac=\S+)?")
    rows = rows[only].assign(zone=rows["method.estimation_frac"] > 0)
    rows = shared_samples(rows, "zone")
    if rows["zone"].nunique() < 2:
        raise NotEnoughRows(f"needs cells with and without estimation: {command}")
    tasks = list(dict.fromkeys(rows["task"]))
    drawing, axes = style.figure(style.ONE_COLUMN, 2.5)
    for i, (zone, look) in enumerate(((True, {}), (False, {"alpha": 0.45, "hatch": "////"}))):
        for x, task in enumerate(tasks):
            scores = rows.loc[(rows["task"] == task) & (rows["zone"] == zone), "score"] * 100
            mean, low, high = mean_interval(scores)
            axes.bar(
                x + (i - 0.5) * 0.4,
                mean,
                0.36,
                yerr=[[mean - low], [high - mean]],
                error_kw={"linewidth": 0.8, "capsize": 1.5, "ecolor": "#777777"},
                color=style.color("retroinfer"),
                label=("with estimation" if zone else "without") if x == 0 else None,
                **look,
            )
    axes.set_xticks(range(len(tasks)), [t.replace("niah_", "").replace("_", " ") for t in tasks])
    axes.set_ylim(0, 105)
    axes.set_ylabel("score")
    axes.grid(axis="x", visible=False)
    drawing.legend(loc="outside upper center", ncols=2)
    style.note(drawing, say(rows, ["zone", "task"]))
    return style.uses(drawing, rows["key"])
