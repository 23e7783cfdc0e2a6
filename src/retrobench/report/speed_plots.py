"""Figures of ``task=speed``."""

from __future__ import annotations

from typing import Any

import pandas as pd

from retrobench.report import style
from retrobench.report.style import NotEnoughRows
from retrobench.store.results import OK


def throughput(frame: pd.DataFrame) -> Any:
    """Decode rate and step time by context (paper Fig. 12), at each method's best batch size."""
    command = "python run.py task=speed method=full,retroinfer,quest -m"
    rows = frame
    if not frame.empty:
        rows = frame[(frame["benchmark"] == "speed") & (frame["status"] == OK)]
    if rows.empty:
        raise NotEnoughRows(f"no rows of task=speed: {command}")
    model = rows["model"].mode().iloc[0]
    rows = rows[rows["model"] == model]
    best = rows.loc[rows.groupby(["method", "length"])["speed.tokens_per_s"].idxmax()]
    drawing, axes = style.figure(style.TWO_COLUMNS, 2.6, 2)
    for method in style.ordered(best["method"].unique()):
        own = best[best["method"] == method].sort_values("length")
        look = {"marker": style.marker(method), "color": style.color(method), "label": method}
        axes[0].plot(own["length"], own["speed.tokens_per_s"], **look)
        middle = own["speed.step_s"] * 1000
        low, high = own["speed.step_q1_s"] * 1000, own["speed.step_q3_s"] * 1000
        axes[1].errorbar(own["length"], middle, [middle - low, high - middle], capsize=2, **look)
    for panel, label in zip(axes, ("tokens per second", "ms per step"), strict=True):
        panel.set_xscale("log", base=2)
        panel.set_yscale("log")
        lengths = sorted(best["length"].unique())
        panel.set_xticks(lengths, [f"{length / 1024:g}K" for length in lengths])
        panel.set_xlabel("context length (tokens)")
        panel.set_ylabel(label)
    axes[1].set_title("median and quartiles", fontsize=8)
    axes[0].set_title(f"{model}, {rows['speed.threads'].iloc[0]:.0f} threads", fontsize=8)
    axes[0].legend()
    own_data = "shape" in str(model)
    style.note(drawing, "injected clustered keys and values" if own_data else "random token ids")
    return style.uses(drawing, best["key"])


def throughput_by_batch(frame: pd.DataFrame) -> Any:
    """Tokens per second against the batch, a panel per context (paper Fig. 13); OOM is drawn."""
    command = "python run.py -m experiment=throughput_by_batch"
    rows = frame[frame["benchmark"] == "speed"] if len(frame) else frame
    good = rows[rows["status"] == OK] if len(rows) else rows
    if good.empty or good["meta.batch"].nunique() < 2:
        raise NotEnoughRows(f"needs two batch sizes of task=speed: {command}")
    model = good["model"].mode().iloc[0]
    rows = rows[(rows["model"] == model) & (rows["changed"].fillna("") == "")]
    contexts = sorted(good.loc[good["model"] == model, "length"].unique())
    width = style.ONE_COLUMN if len(contexts) == 1 else style.TWO_COLUMNS
    drawing, axes = style.figure(width, 2.6, len(contexts))
    for panel, context in zip([axes] if len(contexts) == 1 else axes, contexts, strict=True):
        here = rows[rows["length"] == context]
        for i, method in enumerate(style.ordered(here["method"].unique())):
            _batch_line(panel, here[here["method"] == method], method, i)
        batches = sorted(here["meta.batch"].unique())
        panel.set_xscale("log", base=2)
        panel.minorticks_off()
        panel.set_xticks(batches, [f"{batch:g}" for batch in batches])
        panel.set_ylim(bottom=0)
        panel.set_xlabel("batch")
        panel.set_ylabel("tokens/s")
        panel.set_title(f"{style.tokens(context)} tokens", fontsize=8)
    handles, labels = (axes if len(contexts) == 1 else axes[0]).get_legend_handles_labels()
    drawing.legend(handles, labels, loc="outside upper center", ncols=len(labels))
    style.note(drawing, f"{model}, {good['speed.threads'].iloc[0]:.0f} threads; median, quartiles")
    return style.uses(drawing, rows["key"])


def _batch_line(panel: Any, rows: pd.DataFrame, method: str, order: int) -> None:
    good = rows[rows["status"] == OK].sort_values("meta.batch")
    rate = good["speed.tokens_per_s"]
    fast, slow = (good["meta.batch"] / good[f"speed.step_{q}_s"] for q in ("q1", "q3"))
    errors = [(rate - slow).clip(lower=0), (fast - rate).clip(lower=0)]
    look = {"marker": style.marker(method), "color": style.color(method), "label": method}
    panel.errorbar(good["meta.batch"], rate, errors, capsize=2, linewidth=1.2, **look)
    for batch in sorted(rows.loc[rows["status"] == "oom", "meta.batch"].unique()):
        where = {"xycoords": ("data", "axes fraction"), "ha": "center", "fontsize": 6}
        panel.annotate("OOM", (batch, 0.03 + 0.07 * order), color=style.color(method), **where)


FIGURES = {"throughput": throughput, "throughput_by_batch": throughput_by_batch}
