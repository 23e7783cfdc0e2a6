"""Figures of ``task=speed``."""

from __future__ import annotations

from typing import Any

import pandas as pd

from retrobench.report.figures import style
from retrobench.report.figures.style import NotEnoughRows
from retrobench.store.results import OK


def throughput(frame: pd.DataFrame) -> Any:
    """Decode rate and step time by context (paper Fig. 12), at each method's best batch size."""
    rows, good = _speed(frame, "python run.py task=speed method=full,retroinfer,quest -m", 1)
    best = good.loc[good.groupby(["method", "length"])["speed.tokens_per_s"].idxmax()]
    drawing, axes = style.figure(style.TWO_COLUMNS, 2.6, 2)
    for i, method in enumerate(style.ordered(rows["method"].unique())):
        own = best[best["method"] == method].sort_values("length")
        look = {"marker": style.marker(method), "color": style.color(method), "label": method}
        axes[0].plot(own["length"], own["speed.tokens_per_s"], **look)
        middle = own["speed.step_s"] * 1000
        low, high = own["speed.step_q1_s"] * 1000, own["speed.step_q3_s"] * 1000
        axes[1].errorbar(own["length"], middle, [middle - low, high - middle], capsize=2, **look)
        failed = set(_failed(rows, method)["length"]) - set(own["length"])
        for panel in axes:
            style.out_of_memory(panel, failed, style.color(method), i)
    for panel, label in zip(axes, ("tokens per second", "ms per step"), strict=True):
        panel.set_xscale("log", base=2)
        panel.set_yscale("log")
        panel.xaxis.minorticks_off()
        panel.yaxis.set_major_formatter(style.plain_numbers())
        panel.yaxis.set_minor_formatter(style.plain_numbers())
        lengths = sorted(rows["length"].unique())
        panel.set_xticks(lengths, [style.tokens(length) for length in lengths])
        panel.set_xlabel("context (tokens)")
        panel.set_ylabel(label)
    axes[1].set_title("median and quartiles", fontsize=8)
    axes[0].set_title(_where(good), fontsize=8)
    axes[0].legend()
    injected = (good["meta.shape"] != "model").all()
    style.note(drawing, "injected clustered keys and values" if injected else "random token ids")
    return style.uses(drawing, [*best["key"], *rows.loc[rows["status"] == "oom", "key"]])


def throughput_by_batch(frame: pd.DataFrame) -> Any:
    """Tokens per second against the batch, a panel per context (paper Fig. 13); OOM is drawn."""
    rows, good = _speed(frame, "python run.py -m experiment=throughput_by_batch", 2)
    contexts = sorted(good["length"].unique())
    drawing, panels = _panels(len(contexts))
    for panel, context in zip(panels, contexts, strict=True):
        here = rows[rows["length"] == context]
        for i, method in enumerate(style.ordered(here["method"].unique())):
            own = good[(good["length"] == context) & (good["method"] == method)]
            own = own.sort_values("meta.batch")
            rate = own["speed.tokens_per_s"]
            fast, slow = (own["meta.batch"] / own[f"speed.step_{q}_s"] for q in ("q1", "q3"))
            errors = [(rate - slow).clip(lower=0), (fast - rate).clip(lower=0)]
            look = {"marker": style.marker(method), "color": style.color(method), "label": method}
            panel.errorbar(own["meta.batch"], rate, errors, capsize=2, linewidth=1.2, **look)
            failed = set(_failed(here, method)["meta.batch"]) - set(own["meta.batch"])
            style.out_of_memory(panel, failed, style.color(method), i)
        style.batch_axis(panel, here["meta.batch"])
        panel.set_title(f"{style.tokens(context)} tokens", fontsize=8)
    _legend(drawing, panels)
    style.note(drawing, f"{_where(good)}; median, quartiles")
    return style.uses(drawing, rows["key"])


def latency_vs_load(frame: pd.DataFrame) -> Any:
    """Seconds until a request is answered against requests served per second (paper Fig. 17).

    A batch is served as a whole, so its requests share one latency: prefill, index build and every
    decode step of the model. Each batch is a point; a panel per load (tokens in, tokens out).
    """
    command = "python run.py -m experiment=latency_vs_load"
    if "meta.shape" in frame:
        frame = frame[frame["meta.shape"] == "model"]
    rows, good = _speed(frame, command, 2)
    good = good.assign(latency_s=good[["prefill_s", "seal_s", "decode_s"]].sum(axis=1))
    good = good.assign(rate=good["meta.batch"] / good["latency_s"]).sort_values("meta.batch")
    loads = sorted(set(zip(good["length"], good["decode_steps"], strict=True)), reverse=True)
    drawing, panels = _panels(len(loads))
    for panel, (tokens_in, tokens_out) in zip(panels, loads, strict=True):
        here = good[(good["length"] == tokens_in) & (good["decode_steps"] == tokens_out)]
        failures = []
        for method in style.ordered(rows["method"].unique()):
            own = here[here["method"] == method]
            look = {"marker": style.marker(method), "color": style.color(method), "label": method}
            panel.plot(own["rate"], own["latency_s"], linewidth=1.2, **look)
            for _, row in own.iterrows():
                at = {"xytext": (3, 3), "textcoords": "offset points", "fontsize": 6}
                point = (row["rate"], row["latency_s"])
                panel.annotate(f"{row['meta.batch']:g}", point, color=look["color"], **at)
            failed = _failed(rows[rows["length"] == tokens_in], method)["meta.batch"]
            if failed := set(failed) - set(own["meta.batch"]):
                failures.append(f"{method}: OOM from batch {min(failed):g}")
        where = {"transform": panel.transAxes, "ha": "right", "va": "bottom", "fontsize": 6}
        panel.text(0.99, 0.02, "\n".join(failures), **where)
        panel.set_ylim(bottom=0)
        panel.set_xlim(left=0)
        panel.margins(0.08)
        panel.set_xlabel("requests per second")
        panel.set_ylabel("latency (s)")
        title = f"{style.tokens(tokens_in)} tokens in, {style.tokens(tokens_out)} out"
        panel.set_title(title, fontsize=8)
    _legend(drawing, panels)
    style.note(drawing, f"{_where(good)}; numbers: batch; one run of each, random token ids")
    return style.uses(drawing, rows["key"])


def _speed(frame: pd.DataFrame, command: str, batches: int) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Rows of the model with most answers and methods' default options; those with an answer."""
    rows = frame[frame["benchmark"] == "speed"] if len(frame) else frame
    good = rows[rows["status"] == OK] if len(rows) else rows
    if good.empty or good["meta.batch"].nunique() < batches:
        need = "rows" if batches == 1 else f"{batches} batch sizes"
        raise NotEnoughRows(f"needs {need} of task=speed: {command}")
    model = good["model"].mode().iloc[0]
    rows = rows[(rows["model"] == model) & (rows["changed"].fillna("") == "")]
    if not (rows["status"] == OK).any():
        raise NotEnoughRows(f"no rows of methods with default options: {command}")
    return rows, rows[rows["status"] == OK]


def _failed(rows: pd.DataFrame, method: str) -> pd.DataFrame:
    return rows[(rows["method"] == method) & (rows["status"] == "oom")]


def _panels(count: int) -> tuple[Any, list[Any]]:
    width = style.ONE_COLUMN if count == 1 else style.TWO_COLUMNS
    drawing, axes = style.figure(width, 2.6, count)
    return drawing, [axes] if count == 1 else list(axes)


def _legend(drawing: Any, panels: list[Any]) -> None:
    handles, labels = panels[0].get_legend_handles_labels()
    drawing.legend(handles, labels, loc="outside upper center", ncols=len(labels))


def _where(rows: pd.DataFrame) -> str:
    threads = rows["speed.threads"].iloc[0]
    return f"{rows['model'].iloc[0]}, {threads:.0f} thread{'s' if threads > 1 else ''}"


FIGURES = {
    "throughput": throughput,
    "throughput_by_batch": throughput_by_batch,
    "latency_vs_load": latency_vs_load,
}
