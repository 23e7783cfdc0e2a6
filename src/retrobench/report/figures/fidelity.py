"""Figures of fidelity rows (`measure=fidelity`): where attention lies and how far methods are."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd

from retrobench.report.figures import style
from retrobench.report.figures.style import NotEnoughRows
from retrobench.report.rows import say
from retrobench.report.tables.fidelity import common_layers, over_layers, span
from retrobench.store.results import OK

COMMAND = "python run.py -m method=full,oracle_topk,retroinfer,quest,random measure=score,fidelity"


def mass_cdf(frame: pd.DataFrame) -> Any:
    """Attention mass in the heaviest share of the context, by benchmark task."""
    rows = _measured(frame)
    drawing, axes = style.figure(style.ONE_COLUMN, 2.6)
    for i, (task, group) in enumerate(rows.groupby("task", sort=False)):
        curves = [found["cdf"]["mass"] for found in group["fidelity"]]
        fracs = group["fidelity"].iloc[0]["cdf"]["frac"]
        color = style.COLORS[i % len(style.COLORS)]
        axes.plot(np.array(fracs) * 100, np.mean(curves, 0), color=color, label=str(task))
    axes.set_xscale("log")
    axes.set_xlabel("heaviest tokens (% of context)")
    axes.set_ylabel("attention mass")
    axes.set_ylim(0, 1.02)
    axes.legend(fontsize=6)
    style.note(drawing, say(rows, ["key", "task"]))
    return drawing


def step_overlap(frame: pd.DataFrame) -> Any:
    """Overlap with the step before: the 100 heaviest tokens, and what each method attends."""
    rows = _measured(frame)
    means = _means(rows, ("top_step", "own_step"))
    drawing, axes = style.figure(style.ONE_COLUMN, 2.4)
    place = np.arange(len(means))
    axes.bar(place, means["own_step"], 0.7, color=[style.color(method) for method in means.index])
    level = means["top_step"].mean()
    axes.axhline(level, color="black", ls="--", lw=0.8, label="100 heaviest tokens")
    axes.set_xticks(place, list(means.index), rotation=30, ha="right")
    axes.set_ylabel("overlap with the step before")
    axes.set_ylim(0, 1.02)
    axes.legend(fontsize=6)
    style.note(drawing, say(rows, ["key"]))
    return drawing


def cluster_mass(frame: pd.DataFrame) -> Any:
    """Mass that a centroid stands for against the true mass of its cluster's tokens."""
    rows = _measured(frame)
    drawing, axes = style.figure(style.ONE_COLUMN, 3.0)
    drawn = False
    for method, group in rows.groupby("method", sort=False):
        pairs = np.array([pair for found in group["fidelity"] for pair in found["pairs"]])
        if not len(pairs):
            continue
        shown = np.maximum(pairs, 1e-12)
        axes.scatter(*shown.T, s=3, alpha=0.4, color=style.color(str(method)), label=str(method))
        drawn = True
    if not drawn:
        raise NotEnoughRows(f"no method with estimates: {COMMAND}")
    low, high = axes.get_xlim()
    axes.plot([max(low, 1e-12), high], [max(low, 1e-12), high], color="black", linewidth=0.8)
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xlabel("true mass of a cluster")
    axes.set_ylabel("estimated mass")
    axes.legend(fontsize=6)
    style.note(drawing, say(rows, ["key"]))
    return drawing


def error_heatmap(frame: pd.DataFrame) -> Any:
    """Relative output error by layer and head, a panel per method (its last cell)."""
    rows = _measured(frame)
    methods = [m for m in style.ordered(rows["method"].unique()) if m != "full"]
    if not methods:
        raise NotEnoughRows(f"only full attention was measured: {COMMAND}")
    drawing, axes = style.figure(max(style.ONE_COLUMN, 1.7 * len(methods)), 2.2, len(methods))
    for panel, method in zip([axes] if len(methods) == 1 else axes, methods, strict=True):
        own = rows[rows["method"] == method]
        own = own[own["key"] == own["key"].iloc[-1]]
        grid = np.mean([found["by_layer_head"]["error"] for found in own["fidelity"]], 0)
        image = panel.imshow(grid, vmin=0, vmax=1, cmap="cividis", aspect="auto")
        budget = own["budget"].iloc[0]
        panel.set_title(method if pd.isna(budget) else f"{method} {budget}", fontsize=8)
        panel.set_xlabel("query head")
        panel.grid(visible=False)
        layers = own["fidelity"].iloc[0]["layers"]
        panel.set_yticks(range(len(layers)), [str(layer) for layer in layers])
        if method == methods[0]:
            panel.set_ylabel("layer")
    drawing.colorbar(image, ax=axes, label="relative output error")
    style.note(drawing, say(rows, ["key"]))
    return drawing


def recall_budget(frame: pd.DataFrame) -> Any:
    """Recall of attention mass by the share of tokens attended; dashed: best with as many.

    A line joins cells that differ in the budget alone.
    """
    rows = _measured(frame)
    rows = rows[rows["method"] != "full"]
    rows = rows.assign(changed=rows["changed"].fillna(""))
    points = rows.groupby(["method", "protocol", "changed", "key"])["fidelity"].agg(list)
    if len(points) < 2:
        raise NotEnoughRows(f"needs two cells: {COMMAND} budget=1.8%,5%")
    common = _common(rows)
    drawing, axes = style.figure(style.ONE_COLUMN, 2.6)
    for method in style.ordered(points.index.get_level_values(0).unique()):
        names = ("attended_frac", "recall", "oracle")
        label, look = method, {"marker": style.marker(method), "color": style.color(method)}
        for _, cells in points.loc[method].groupby(["protocol", "changed"]):
            values = [_mean(found, names, common) for found in cells]
            table = pd.DataFrame(values, columns=names).dropna().sort_values("attended_frac")
            share = table["attended_frac"] * 100
            axes.plot(share, table["recall"], label=label, **look)
            axes.plot(share, table["oracle"], "_--", color=look["color"], lw=0.8)
            label = None  # one entry of the legend per method
    axes.plot([], [], "_--", color="black", lw=0.8, label="largest possible")
    axes.set_xlim(left=0)
    axes.set_xlabel("tokens attended exactly (% of context)")
    axes.set_ylabel("recall of attention mass")
    axes.set_ylim(0, 1.02)
    axes.legend(fontsize=6)
    style.note(drawing, f"{say(rows, ['key'])}, layers {span(common)}")
    return drawing


FIGURES: dict[str, Callable[[pd.DataFrame], Any]] = {
    "fidelity_mass_cdf": mass_cdf,
    "fidelity_step_overlap": step_overlap,
    "fidelity_cluster_mass": cluster_mass,
    "fidelity_error": error_heatmap,
    "fidelity_recall": recall_budget,
}


def _measured(frame: pd.DataFrame) -> pd.DataFrame:
    if frame.empty or "fidelity" not in frame:
        raise NotEnoughRows(f"no rows of measure=fidelity: {COMMAND}")
    rows = frame[(frame["status"] == OK) & frame["fidelity"].notna()]
    rows = rows[[found["steps"] > 0 for found in rows["fidelity"]]]
    if rows.empty:
        raise NotEnoughRows(f"no rows of measure=fidelity: {COMMAND}")
    return rows


def _common(rows: pd.DataFrame) -> list[int]:
    return common_layers(found["sparse_layers"] for found in rows["fidelity"])


def _mean(found: list[dict[str, Any]], names: tuple[str, ...], layers: list[int]) -> list[float]:
    """Means over rows and over the layers that all methods leave sparse."""

    def value(row: dict[str, Any], name: str) -> float:
        by_layer = row["layer_mean"].get(name)
        return over_layers(by_layer, row["layers"], layers) if by_layer else np.nan

    return [float(np.mean([value(row, name) for row in found])) for name in names]


def _means(rows: pd.DataFrame, names: tuple[str, ...]) -> pd.DataFrame:
    groups, common = rows.groupby("method")["fidelity"].agg(list), _common(rows)
    order = style.ordered(groups.index)
    values = [_mean(groups[method], names, common) for method in order]
    return pd.DataFrame(values, index=order, columns=names)
