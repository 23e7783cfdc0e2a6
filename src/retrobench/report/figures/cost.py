"""What a method costs: accuracy against bytes, prefill by part, a decode step by part."""

from __future__ import annotations

from typing import Any

import pandas as pd

from retrobench.report.figures import style
from retrobench.report.figures.style import NotEnoughRows
from retrobench.report.rows import say, scored, shared_samples
from retrobench.report.tables.scores import moved_bytes
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
    axes.xaxis.set_major_locator(style.few_per_decade())
    axes.xaxis.set_major_formatter("{x:g}")
    axes.xaxis.minorticks_off()
    axes.set_xlabel("MiB moved per decode step")
    axes.set_ylabel("score")
    axes.set_ylim(-3, 105)
    drawing.legend(loc="outside upper center", ncols=3)
    style.note(drawing, say(rows, ["key"]))
    return style.uses(drawing, rows["key"])


def prefill_breakdown(frame: pd.DataFrame) -> Any:
    """Seconds of prefill and of index build, stacked, by length and method (paper Fig. 15)."""
    if frame.empty:
        raise NotEnoughRows(f"no timed rows: {_PREFILL}")
    plain = frame[(frame["changed"].fillna("") == "") & (frame["engine.batch"] == 1)]
    plain = plain[(plain["length"] > 0) & (plain["benchmark"] != "speed")]
    rows = plain[(plain["status"] == OK) & plain["prefill_s"].notna()]
    both = rows.groupby("method")["seal_s"].median()
    if len(both) < 2:
        raise NotEnoughRows(f"needs full attention and a method that builds an index: {_PREFILL}")
    full = plain[(plain["status"] == "oom") & plain["benchmark"].isin(rows["benchmark"].unique())]
    full = full.merge(rows[["method", "length"]].drop_duplicates(), how="left", indicator="seen")
    full = full[full["seen"] == "left_only"]  # never answered at that length
    methods = style.ordered({*both.index, *full["method"]})
    lengths = sorted({*rows["length"], *full["length"]})
    drawing, axes = style.figure(style.ONE_COLUMN, 2.7)
    width = 0.8 / len(methods)
    for i, method in enumerate(methods):
        own = rows[rows["method"] == method].groupby("length")[["prefill_s", "seal_s"]].median()
        places = [lengths.index(n) + (i - (len(methods) - 1) / 2) * width for n in own.index]
        look = {"width": width * 0.92, "color": style.color(method)}
        axes.bar(places, own["prefill_s"], label=method, **look)
        axes.bar(places, own["seal_s"], bottom=own["prefill_s"], hatch="////", alpha=0.5, **look)
        shift = (i - (len(methods) - 1) / 2) * width
        missing = [lengths.index(n) + shift for n in full.loc[full["method"] == method, "length"]]
        style.out_of_memory(axes, missing, style.color(method))
    axes.bar([0], [0], color="white", edgecolor="#555555", hatch="////", label="index build")
    axes.set_xticks(range(len(lengths)), [style.tokens(n) for n in lengths])
    axes.set_xlabel("context (tokens)")
    axes.set_ylabel("prefill (s)")
    axes.grid(axis="x", visible=False)
    drawing.legend(loc="outside upper center", ncols=3)
    style.note(drawing, say(rows, ["method", "length"]))
    return style.uses(drawing, [*rows["key"], *full["key"]])


def step_breakdown(frame: pd.DataFrame) -> Any:
    """Milliseconds of a decode step by part, for cells with ``measure=latency``."""
    command = "python run.py -m method=full,retroinfer measure=latency"
    spans = [c for c in frame if c.startswith("live.span_s.")]
    rows = frame[frame[spans].notna().any(axis=1)] if spans else frame.iloc[:0]
    rows = rows[rows["benchmark"] != "speed"] if len(rows) else rows
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
