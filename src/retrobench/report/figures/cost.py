"""What a method costs: accuracy against bytes, prefill by part, a decode step by part."""

from typing import Any

import pandas as pd

from retrobench.report import headroom
from retrobench.report.benchmarks import is_timed
from retrobench.report.figures import parts, style
from retrobench.report.rows import (
    default_options,
    describe,
    moved_bytes,
    one_budget,
    require,
    scored,
    shared_samples,
    token_count,
    usual_batch,
    usual_length,
)
from retrobench.stats.intervals import mean_interval
from retrobench.store.row_file import OK

_HATCH = "////"


def pareto_accuracy_bytes(frame: pd.DataFrame) -> Any:
    """Mean score against bytes moved per decode step: one point per cell, on shared samples."""
    command = "python run.py -m experiment=pareto_accuracy_bytes"
    rows = scored(frame, "ruler", command)
    whole = usual_length(rows[rows["budget"].notna() | (rows["method"] == "full")])
    rows = shared_samples(headroom.informative(whole), "key")
    require(rows["key"].nunique() > 2, "needs three cells with budgets and shared samples", command)
    drawing, (axes,) = style.figure(2.7)
    for method, own in style.by_method(rows).items():
        own = own.assign(mib=moved_bytes(own) / 2**20, percent=own["score"] * 100)
        cells = [cell for _, cell in own.groupby("key")]
        points = [(cell["mib"].median(), *mean_interval(cell["percent"])) for cell in cells]
        parts.interval_line(axes, sorted(points), **style.look(method))
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(parts.few_per_decade())
    axes.xaxis.set_major_formatter("{x:g}")
    axes.xaxis.minorticks_off()
    axes.set(xlabel="MiB moved per decode step", ylabel="mean score", ylim=(-3, 105))
    left_out = whole[headroom.lacks_headroom(whole)]
    note = parts.INTERVALS + headroom.figure_note(rows, left_out=left_out)
    return style.finish(drawing, rows, ["key"], note, columns=3)


def prefill_breakdown(frame: pd.DataFrame) -> Any:
    """Seconds of prefill and of index build, stacked, by length and method (paper Fig. 15)."""
    rows, failed = _prefill_rows(frame)
    methods = style.ordered({*rows["method"], *failed["method"]})
    lengths = sorted({*rows["length"], *failed["length"]})
    drawing, (axes,) = style.figure(2.7)
    for index, method in enumerate(methods):
        slot = (index, len(methods))
        own = rows[rows["method"] == method].groupby("length")[["prefill_s", "seal_s"]].median()
        look = {"width": parts.slot_width(slot), "color": style.color(method)}
        places = [parts.slot_place(lengths.index(n), slot) for n in own.index]
        axes.bar(places, own["prefill_s"], label=method, **look)
        axes.bar(places, own["seal_s"], bottom=own["prefill_s"], hatch=_HATCH, alpha=0.5, **look)
        missing = failed.loc[failed["method"] == method, "length"]
        places = [parts.slot_place(lengths.index(n), slot) for n in missing]
        parts.out_of_memory(axes, places, style.color(method))
    axes.bar([0], [0], color="white", edgecolor="#555555", hatch=_HATCH, label="index build")
    parts.group_axis(axes, [token_count(n) for n in lengths])
    axes.set(xlabel="context (tokens)", ylabel="prefill and index build (s)")
    note = describe(rows, ["method", "length"]) + "; medians"
    return style.finish(drawing, pd.concat([rows, failed]), None, note, columns=3)


def _prefill_rows(frame: pd.DataFrame) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Timed rows, and those out of memory at a length where their method has no timed row."""
    command = "python run.py -m experiment=prefill_breakdown"
    plain = frame[default_options(frame) & (frame["engine.batch"] == 1)]
    plain = plain[(plain["length"] > 0) & ~is_timed(plain)]
    rows = plain[(plain["status"] == OK) & plain["prefill_s"].notna()]
    enough = rows["method"].nunique() > 1
    require(enough, "needs full attention and a method that builds an index", command)
    failed = plain[(plain["status"] == "oom") & plain["benchmark"].isin(rows["benchmark"])]
    answered = rows[["method", "length"]].drop_duplicates()
    failed = failed.merge(answered, how="left", indicator="answered")
    return rows, failed[failed["answered"] == "left_only"]


def step_breakdown(frame: pd.DataFrame) -> Any:
    """Milliseconds of a decode step by part, for cells with ``measure=latency``."""
    spans = [c for c in frame if c.startswith("live.span_s.")]
    rows = frame[frame[spans].notna().any(axis=1)] if spans else frame.iloc[:0]
    rows = rows[~is_timed(rows) & default_options(rows)]
    command = "python run.py -m method=full,retroinfer measure=latency"
    require(len(rows), "no timed parts of methods with default options", command)
    rows = one_budget(usual_batch(rows))
    rows = rows[rows["length"] == rows["length"].max()]
    steps = rows["decode_steps"].clip(lower=1)
    seconds = rows[spans].div(steps, axis=0).groupby(rows["method"]).median()
    methods = style.ordered(seconds.index)
    drawing, (axes,) = style.figure(0.9 + 0.4 * len(methods))
    left = pd.Series(0.0, index=methods)
    for i, span in enumerate(spans):
        values = 1000 * seconds.loc[methods, span].fillna(0)
        color = style.option_look(i)["color"]
        axes.barh(methods, values, left=left, color=color, label=span.rpartition(".")[2])
        left += values
    axes.invert_yaxis()
    axes.set_xlabel("ms per decode step, all layers")
    axes.grid(axis="y", visible=False)
    return style.finish(drawing, rows, ["method"], "; medians", columns=4)


def estimation_on_off(frame: pd.DataFrame) -> Any:
    """Score per task with and without the estimation zone (paper Fig. 19a)."""
    command = "python run.py -m experiment=estimation_on_off"
    rows = scored(frame, "ruler", command)
    require("method.estimation_frac" in rows, "no rows of retroinfer", command)
    rows = rows[(rows["method"] == "retroinfer") & rows["budget"].isna()]
    only = rows["changed"].fillna("").str.fullmatch(r"(estimation_frac=\S+)?")
    rows = rows[only].assign(zone=rows["method.estimation_frac"] > 0)
    rows = shared_samples(rows, "zone")
    require(rows["zone"].nunique() > 1, "needs cells with and without estimation", command)
    drawing, (axes,) = style.figure(2.5)
    look = {"color": style.color("retroinfer")}
    series = {
        "with estimation": (rows[rows["zone"]], look),
        "without": (rows[~rows["zone"]], {**look, "alpha": 0.45, "hatch": _HATCH}),
    }
    parts.score_bars(axes, rows, series)
    return style.finish(
        drawing, rows, ["zone", "task"], parts.INTERVALS + headroom.figure_note(rows)
    )


_DRAWN = (pareto_accuracy_bytes, prefill_breakdown, step_breakdown, estimation_on_off)
FIGURES = {draw.__name__: draw for draw in _DRAWN}
