"""Figures of fidelity rows (`measure=fidelity`): where attention lies and how far methods are."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd

from retrobench.report.figures import parts, style
from retrobench.report.rows import NotEnoughRows, describe
from retrobench.report.tables.fidelity import common_layers, layer_range, over_layers
from retrobench.store.row_file import OK

COMMAND = "python run.py -m method=full,oracle_topk,retroinfer,quest,random measure=score,fidelity"


def mass_cdf(frame: pd.DataFrame) -> Any:
    """Attention mass in the heaviest share of the context, by benchmark task."""
    rows = _measured(frame)
    drawing, (axes,) = style.figure(2.6)
    for i, (task, group) in enumerate(rows.groupby("task", sort=False)):
        curves = [measured["cdf"]["mass"] for measured in group["fidelity"]]
        percent = 100 * np.array(group["fidelity"].iloc[0]["cdf"]["frac"])
        color = style.COLORS[i % len(style.COLORS)]
        axes.plot(percent, np.mean(curves, 0), color=color, label=str(task))
    axes.set(xlabel="heaviest tokens (% of context)", ylabel="attention mass")
    axes.set(xscale="log", ylim=(0, 1.02))
    return _finish(drawing, rows, ["key", "task"])


def step_overlap(frame: pd.DataFrame) -> Any:
    """Overlap with the step before: the 100 heaviest tokens, and what each method attends."""
    rows = _measured(frame)
    means = _means(rows, ("top_step", "own_step"))
    drawing, (axes,) = style.figure(2.4)
    place = np.arange(len(means))
    axes.bar(place, means["own_step"], 0.7, color=[style.color(method) for method in means.index])
    level = means["top_step"].mean()
    axes.axhline(level, color="black", ls="--", lw=0.8, label="100 heaviest tokens")
    axes.set_xticks(place, list(means.index), rotation=30, ha="right")
    axes.set(ylabel="overlap with the step before", ylim=(0, 1.02))
    return _finish(drawing, rows, ["key"])


def cluster_mass(frame: pd.DataFrame) -> Any:
    """Mass that a centroid stands for against the true mass of its cluster's tokens."""
    rows = _measured(frame)
    pairs = {
        str(method): np.array([pair for measured in group for pair in measured["pairs"]])
        for method, group in rows.groupby("method", sort=False)["fidelity"]
    }
    pairs = {method: found for method, found in pairs.items() if len(found)}
    if not pairs:
        raise NotEnoughRows(f"no method with estimates: {COMMAND}")
    drawing, (axes,) = style.figure(3.0)
    for method, found in pairs.items():
        look = {"s": 3, "alpha": 0.4, "color": style.color(method), "label": method}
        axes.scatter(*np.maximum(found, 1e-12).T, **look)
    low, high = axes.get_xlim()
    axes.plot([max(low, 1e-12), high], [max(low, 1e-12), high], color="black", linewidth=0.8)
    axes.set(xscale="log", yscale="log")
    axes.set(xlabel="true mass of a cluster", ylabel="estimated mass")
    return _finish(drawing, rows, ["key"])


def error_heatmap(frame: pd.DataFrame) -> Any:
    """Relative output error by layer and head, a panel per method (its last cell)."""
    rows = _measured(frame)
    methods = [m for m in style.ordered(rows["method"].unique()) if m != "full"]
    if not methods:
        raise NotEnoughRows(f"only full attention was measured: {COMMAND}")
    width = max(style.ONE_COLUMN, 1.7 * len(methods))
    drawing, panels = style.figure(2.2, len(methods), width=width)
    for panel, method in zip(panels, methods, strict=True):
        own = rows[rows["method"] == method]
        own = own[own["key"] == own["key"].iloc[-1]]
        grid = np.mean([measured["by_layer_head"]["error"] for measured in own["fidelity"]], 0)
        budget = own["budget"].iloc[0]
        title = method if pd.isna(budget) else f"{method} {budget}"
        image = parts.heat_map(panel, grid, title, 1)
        layers = own["fidelity"].iloc[0]["layers"]
        panel.set_yticks(range(len(layers)), [str(layer) for layer in layers])
        panel.set_xlabel("query head")
    panels[0].set_ylabel("layer")
    drawing.colorbar(image, ax=panels, label="relative output error")
    return style.finish(drawing, describe(rows, ["key"]), rows["key"], legend=False)


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
    drawing, (axes,) = style.figure(2.6)
    for method in style.ordered(points.index.get_level_values(0).unique()):
        names, look = ("attended_frac", "recall", "oracle"), style.look(method)
        for _, cells in points.loc[method].groupby(["protocol", "changed"]):
            values = [_mean(measured, names, common) for measured in cells]
            table = pd.DataFrame(values, columns=names).dropna().sort_values("attended_frac")
            percent = 100 * table["attended_frac"]
            axes.plot(percent, table["recall"], **look)
            axes.plot(percent, table["oracle"], "_--", color=look["color"], lw=0.8)
            look["label"] = None  # one entry of the legend per method
    axes.plot([], [], "_--", color="black", lw=0.8, label="largest possible")
    axes.set_xlim(left=0)
    axes.set(xlabel="tokens attended exactly (% of context)", ylabel="recall of attention mass")
    axes.set_ylim(0, 1.02)
    return _finish(drawing, rows, ["key"], f", layers {layer_range(common)}")


FIGURES: dict[str, Callable[[pd.DataFrame], Any]] = {
    "fidelity_mass_cdf": mass_cdf,
    "fidelity_step_overlap": step_overlap,
    "fidelity_cluster_mass": cluster_mass,
    "fidelity_error": error_heatmap,
    "fidelity_recall": recall_budget,
}


def _finish(drawing: Any, rows: pd.DataFrame, by: list[str], more: str = "") -> Any:
    """With a small legend inside the panel."""
    drawing.axes[0].legend(fontsize=style.SMALL)
    return style.finish(drawing, describe(rows, by) + more, rows["key"], legend=False)


def _measured(frame: pd.DataFrame) -> pd.DataFrame:
    """Answered rows with measured steps; ``fidelity`` holds what was measured."""
    if "fidelity" in frame:
        rows = frame[(frame["status"] == OK) & frame["fidelity"].notna()]
        rows = rows[[measured["steps"] > 0 for measured in rows["fidelity"]]]
        if len(rows):
            return rows
    raise NotEnoughRows(f"no rows of measure=fidelity: {COMMAND}")


def _common(rows: pd.DataFrame) -> list[int]:
    return common_layers(measured["sparse_layers"] for measured in rows["fidelity"])


def _mean(rows: list[dict[str, Any]], names: tuple[str, ...], layers: list[int]) -> list[float]:
    """Means over rows and over the layers that all methods leave sparse."""

    def value(row: dict[str, Any], name: str) -> float:
        by_layer = row["layer_mean"].get(name)
        return over_layers(by_layer, row["layers"], layers) if by_layer else np.nan

    return [float(np.mean([value(row, name) for row in rows])) for name in names]


def _means(rows: pd.DataFrame, names: tuple[str, ...]) -> pd.DataFrame:
    """Means by method."""
    groups, common = rows.groupby("method")["fidelity"].agg(list), _common(rows)
    order = style.ordered(groups.index)
    values = [_mean(groups[method], names, common) for method in order]
    return pd.DataFrame(values, index=order, columns=names)
