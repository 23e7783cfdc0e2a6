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


FIGURES = {"throughput": throughput}
