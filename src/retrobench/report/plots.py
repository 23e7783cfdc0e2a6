"""Figures, from rows only. Each file embeds the keys and commits of the cells it was drawn from."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd

from retrobench.report import fidelity_plots, style
from retrobench.report.style import NotEnoughRows
from retrobench.report.style import ordered as _ordered
from retrobench.report.table import caption, moved_bytes, niah_matrix
from retrobench.store.results import OK, ResultStore


def ruler_scores(frame: pd.DataFrame) -> Any:
    """Mean score per RULER task and method (bars), at the length with most rows."""
    rows = _scored(frame, "ruler", "python run.py -m method=full,retroinfer task=ruler")
    rows = rows[rows["length"] == rows["length"].mode().iloc[0]]
    table = rows.pivot_table(index="task", columns="method", values="score", sort=False) * 100
    methods = _ordered(table.columns)
    drawing, axes = style.figure(style.TWO_COLUMNS, 2.6)
    width = 0.8 / len(methods)
    for i, method in enumerate(methods):
        places = [x + (i - (len(methods) - 1) / 2) * width for x in range(len(table))]
        axes.bar(places, table[method], width * 0.95, color=style.color(method), label=method)
        for place, value in zip(places, table[method], strict=True):
            if value == 0:  # an empty place would read as missing
                axes.text(place, 1, "0", ha="center", va="bottom", fontsize=6)
    names = [name.replace("niah_", "").replace("_", " ") for name in table.index]
    axes.set_xticks(range(len(table)), names)
    axes.set_ylim(0, 105)
    axes.set_ylabel("score")
    axes.grid(axis="x", visible=False)
    length = rows["length"].iloc[0] / 1024
    axes.set_title(f"RULER at {length:g}K, {rows['model'].iloc[0]} ({_short(frame)})", fontsize=8)
    drawing.legend(loc="outside lower center", ncols=len(methods))
    return drawing


def ruler_by_length(frame: pd.DataFrame) -> Any:
    """Average over tasks by context length, a line per method (RetroInfer paper, Fig. 10)."""
    rows = _scored(frame, "ruler", "python run.py -m experiment=ruler_by_length")
    if rows["length"].nunique() < 2:
        raise NotEnoughRows("needs two lengths: python run.py -m experiment=ruler_by_length")
    by_task = rows.groupby(["method", "length", "task"])["score"].mean()
    table = by_task.groupby(["method", "length"]).mean().unstack(0) * 100
    drawing, axes = style.figure(style.ONE_COLUMN, 2.6)
    _lines(axes, table, "context length (tokens)", "RULER average")
    axes.set_xscale("log", base=2)
    axes.set_xticks(list(table.index), [f"{length / 1024:g}K" for length in table.index])
    return drawing


def niah_heatmap(frame: pd.DataFrame) -> Any:
    """Score by needle depth and context length, a panel per method (paper Fig. 11)."""
    rows = _scored(frame, "niah", "python run.py -m experiment=niah_grid")
    methods = _ordered(rows["method"].unique())
    drawing, axes = style.figure(style.TWO_COLUMNS, 2.4, len(methods))
    for panel, method in zip([axes] if len(methods) == 1 else axes, methods, strict=True):
        grid = niah_matrix(rows[rows["method"] == method]) * 100
        image = panel.imshow(grid, vmin=0, vmax=100, cmap="cividis", aspect="auto")
        panel.set_title(method, fontsize=8)
        panel.grid(visible=False)
        panel.set_xticks(range(grid.shape[1]), [f"{c / 1024:g}K" for c in grid.columns])
        panel.set_yticks(range(grid.shape[0]), [f"{depth:g}" for depth in grid.index])
        panel.set_xlabel("context length")
        for y in range(grid.shape[0]):
            for x in range(grid.shape[1]):
                value = grid.iloc[y, x]
                ink = "white" if value < 60 else "black"
                panel.text(x, y, f"{value:.0f}", ha="center", va="center", color=ink, fontsize=7)
        if method == methods[0]:
            panel.set_ylabel("depth (%)")
    drawing.colorbar(image, ax=axes, label="score")
    return drawing


def cluster_count(frame: pd.DataFrame) -> Any:
    """Accuracy, build time and bytes per step against tokens per cluster."""
    rows = _scored(frame, "ruler", "python run.py -m experiment=cluster_count")
    rows = rows[(rows["method"] == "retroinfer") & rows["method.num_clusters"].isna()].copy()
    rows["per_cluster"] = rows["method.tokens_per_cluster"]
    if rows["per_cluster"].nunique() < 2:
        raise NotEnoughRows("needs two cluster sizes: python run.py -m experiment=cluster_count")
    rows["mib"] = moved_bytes(rows) / 2**20
    drawing, axes = style.figure(style.TWO_COLUMNS, 2.2, 3)
    groups = rows.groupby("per_cluster")
    for panel, values, label in zip(
        axes,
        (groups["score"].mean() * 100, groups["seal_s"].median(), groups["mib"].median()),
        ("score", "index build (s)", "MiB read per step"),
        strict=True,
    ):
        panel.plot(values.index, values, marker="s", color=style.color("retroinfer"))
        panel.set_xscale("log", base=2)
        panel.set_xticks(list(values.index), [f"{x:g}" for x in values.index])
        panel.set_xlabel("tokens per cluster")
        panel.set_ylabel(label)
        panel.set_ylim(0, values.max() * 1.1 or 1)
    return drawing


def cost_accuracy(frame: pd.DataFrame) -> Any:
    """Mean score against bytes read per decode step: one point per cell."""
    rows = _scored(frame, "ruler", "python run.py -m experiment=pareto").copy()
    rows["mib"] = moved_bytes(rows) / 2**20
    points = rows.groupby(["method", "key"]).agg(score=("score", "mean"), mib=("mib", "median"))
    if len(points) < 3:
        raise NotEnoughRows("needs three cells: python run.py -m experiment=pareto")
    drawing, axes = style.figure(style.ONE_COLUMN, 2.6)
    for method in _ordered(points.index.get_level_values(0).unique()):
        own = points.loc[method].sort_values("mib")
        look = {"marker": style.marker(method), "color": style.color(method), "label": method}
        axes.plot(own["mib"], own["score"] * 100, **look)
    axes.set_xscale("log")
    axes.set_xlabel("MiB read per decode step")
    axes.set_ylabel("score")
    axes.set_ylim(-3, 105)
    axes.legend()
    return drawing


FIGURES: dict[str, Callable[[pd.DataFrame], Any]] = {
    "ruler_scores": ruler_scores,
    "ruler_by_length": ruler_by_length,
    "niah_heatmap": niah_heatmap,
    "cluster_count": cluster_count,
    "cost_accuracy": cost_accuracy,
    **fidelity_plots.FIGURES,
}


def draw(
    store: ResultStore, out: Path, names: list[str] | None = None, keys: list[str] | None = None
) -> list[tuple[str, Path | None, str]]:
    """Draw figures as PDF and PNG: ``(name, path of the PNG or None, reason if not drawn)``.

    From all cells, or from those of ``keys``.
    """
    frame = load(store, keys)
    out.mkdir(parents=True, exist_ok=True)
    results: list[tuple[str, Path | None, str]] = []
    for name in names or list(FIGURES):
        try:
            drawing = FIGURES[name](frame)
        except NotEnoughRows as error:
            results.append((name, None, str(error)))
            continue
        protocols = ", ".join(sorted(set(frame["protocol"])))
        note = f"protocol: {protocols}; {_short(frame)}"
        drawing.supxlabel(note, fontsize=6, color="#666666")
        source = _source(store, frame)
        drawing.savefig(out / f"{name}.pdf", metadata={"Title": name, "Keywords": source})
        drawing.savefig(out / f"{name}.png", dpi=200, metadata={"Title": name, "Comment": source})
        results.append((name, out / f"{name}.png", ""))
    return results


def load(store: ResultStore, keys: list[str] | None = None) -> pd.DataFrame:
    """Every column of the rows."""
    return store.columns(None, keys)


def figure_source(path: Path) -> str:
    """Cell keys and commits that a drawn PDF or PNG was made from; ValueError if it holds none."""
    data = path.read_bytes()
    match = re.search(rb"retrobench cells [^)\x00]*?\.", data)
    if match is None:
        raise ValueError(f"{path}: no retrobench source in this file")
    return match.group().decode()


def _scored(frame: pd.DataFrame, benchmark: str, command: str) -> pd.DataFrame:
    if frame.empty or not (frame["benchmark"] == benchmark).any():
        raise NotEnoughRows(f"no rows of task={benchmark}: {command}")
    rows = frame[(frame["benchmark"] == benchmark) & (frame["status"] == OK)]
    rows = rows[rows["score"].notna()]
    if rows.empty:
        raise NotEnoughRows(f"no scored rows of task={benchmark}: {command}")
    return rows


def _lines(axes: Any, table: pd.DataFrame, x_label: str, y_label: str) -> None:
    for method in _ordered(table.columns):
        look = {"marker": style.marker(method), "color": style.color(method), "label": method}
        axes.plot(table.index, table[method], **look)
    axes.set_xlabel(x_label)
    axes.set_ylabel(y_label)
    axes.set_ylim(-3, 105)
    axes.legend()


def _short(frame: pd.DataFrame) -> str:
    return "stand-in data" if "stand-in" in caption(frame) else "real data"


def _source(store: ResultStore, frame: pd.DataFrame) -> str:
    keys = list(frame["key"].unique())
    commits = {str(store.cell(key)["provenance"]["commit"])[:12] for key in keys}
    return f"retrobench cells {' '.join(keys)} commits {' '.join(sorted(commits))}."
