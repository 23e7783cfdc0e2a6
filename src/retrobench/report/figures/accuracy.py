"""Accuracy: RULER by task and length, the needle grid, LongBench groups."""

from __future__ import annotations

from typing import Any

import pandas as pd

from retrobench.report.checks.published import RULER
from retrobench.report.figures import style
from retrobench.report.figures.style import NotEnoughRows
from retrobench.report.rows import one_setting, say, scored
from retrobench.report.tables.averages import LONGBENCH
from retrobench.report.tables.scores import niah_matrix
from retrobench.stats.intervals import mean_interval

_BY_LENGTH = "python run.py -m experiment=ruler_by_length"


def ruler_scores(frame: pd.DataFrame) -> Any:
    """Mean score per RULER task and method (bars), at the length with most rows."""
    rows = one_setting(scored(frame, "ruler", "python run.py -m method=full,retroinfer task=ruler"))
    if rows.empty:
        raise NotEnoughRows("no rows of methods with default options: python run.py task=ruler")
    rows = rows[rows["length"] == rows["length"].mode().iloc[0]]
    title = f"RULER at {style.tokens(rows['length'].iloc[0])}"
    return _bars(rows, "task", title)


def longbench(frame: pd.DataFrame) -> Any:
    """LongBench data sets by method (bars), in the order of the benchmark's categories."""
    rows = one_setting(scored(frame, "longbench", "python run.py -m experiment=longbench"))
    names = [name for group in LONGBENCH["en"].values() for name in group]
    rows = rows[rows["task"].isin(names)]
    if rows.empty:
        raise NotEnoughRows("no English data set: python run.py -m experiment=longbench")
    order = {name: i for i, name in enumerate(names)}
    return _bars(rows.sort_values("task", key=lambda t: t.map(order), kind="stable"), "task", "")


def _bars(rows: pd.DataFrame, by: str, title: str) -> Any:
    methods, groups = style.ordered(rows["method"].unique()), list(dict.fromkeys(rows[by]))
    drawing, axes = style.figure(style.TWO_COLUMNS, 2.6)
    width = 0.8 / len(methods)
    for i, method in enumerate(methods):
        own = rows[rows["method"] == method]
        for x, name in enumerate(groups):
            scores = own.loc[own[by] == name, "score"] * 100
            if scores.empty:
                continue
            mean, low, high = mean_interval(scores)
            place = x + (i - (len(methods) - 1) / 2) * width
            axes.bar(
                place,
                mean,
                width * 0.92,
                yerr=[[mean - low], [high - mean]],
                error_kw={"linewidth": 0.8, "capsize": 1.5, "ecolor": "#777777"},
                color=style.color(method),
                label=method if x == 0 else None,
            )
            if mean == 0:  # an empty place would read as missing
                axes.text(place, 1, "0", ha="center", va="bottom", fontsize=6)
    names = [str(name).replace("niah_", "").replace("_", " ") for name in groups]
    axes.set_xticks(range(len(groups)), names)
    if len(groups) > 7:
        axes.tick_params(axis="x", labelrotation=30)
    axes.set_ylim(0, 105)
    axes.set_ylabel("score")
    axes.grid(axis="x", visible=False)
    axes.set_title(title, fontsize=8)
    drawing.legend(loc="outside upper center", ncols=len(methods))
    style.note(drawing, say(rows, ["method", by]))
    return style.uses(drawing, rows["key"])


def ruler_by_length(frame: pd.DataFrame) -> Any:
    """Average over tasks by context length, a panel per model (RetroInfer paper, Fig. 10)."""
    rows = one_setting(scored(frame, "ruler", _BY_LENGTH))
    rows = rows[rows.groupby("model")["length"].transform("nunique") > 1]
    if rows.empty:
        raise NotEnoughRows(f"needs two lengths: {_BY_LENGTH}")
    models = sorted(rows["model"].unique())
    width = style.ONE_COLUMN if len(models) == 1 else style.TWO_COLUMNS
    drawing, axes = style.figure(width, 2.7, len(models))
    for panel, model in zip([axes] if len(models) == 1 else axes, models, strict=True):
        own = rows[rows["model"] == model]
        for method in style.ordered(own["method"].unique()):
            _length_line(panel, own[own["method"] == method], model, method)
        lengths = sorted(own["length"].unique())
        panel.set_xscale("log", base=2)
        panel.minorticks_off()
        panel.set_xticks(lengths, [style.tokens(length) for length in lengths])
        panel.set_xlabel("context (tokens)")
        panel.set_ylabel("RULER average")
        panel.set_ylim(-3, 105)
        if len(models) > 1:
            panel.set_title(model, fontsize=8)
    handles, labels = (axes if len(models) == 1 else axes[0]).get_legend_handles_labels()
    drawing.legend(handles, labels, loc="outside upper center", ncols=3)
    style.note(drawing, say(rows, ["model", "method", "length"]))
    return style.uses(drawing, rows["key"])


def _length_line(panel: Any, rows: pd.DataFrame, model: str, method: str) -> None:
    points = []
    for length, group in rows.groupby("length"):
        tasks = group.groupby("task")["score"].mean()
        _, low, high = mean_interval(group["score"])
        shift = tasks.mean() - group["score"].mean()  # tasks weigh the same, samples need not
        points.append((length, *(100 * v for v in (tasks.mean(), low + shift, high + shift))))
    x, mean, low, high = zip(*points, strict=True)
    look = {"marker": style.marker(method), "color": style.color(method)}
    panel.plot(x, mean, label=method, linewidth=1.2, **look)
    panel.fill_between(x, low, high, color=style.color(method), alpha=0.15, linewidth=0)
    published = [p for p in RULER if p.model == model and p.method == method and p.length in x]
    if published:
        places = [p.length for p in published], [p.score for p in published]
        panel.plot(*places, label=f"{method} ({published[0].source})", **look, **style.PUBLISHED)


def ruler_tasks(frame: pd.DataFrame) -> Any:
    """Score by task and length, a panel per method (heat map)."""
    rows = one_setting(scored(frame, "ruler", _BY_LENGTH))
    rows = rows[rows["model"] == rows["model"].mode().iloc[0]] if len(rows) else rows
    if rows.empty or rows["length"].nunique() < 2:
        raise NotEnoughRows(f"needs two lengths: {_BY_LENGTH}")
    grids = {
        method: 100
        * rows[rows["method"] == method]
        .pivot_table(index="task", columns="length", values="score", sort=False)
        .sort_index(axis=1)
        for method in style.ordered(rows["method"].unique())
    }
    drawing = _heat_maps(grids, "", lambda name: str(name).replace("niah_", "").replace("_", " "))
    style.note(drawing, say(rows, ["method", "task", "length"]))
    return style.uses(drawing, rows["key"])


def niah_grid(frame: pd.DataFrame) -> Any:
    """Score by needle depth and context length, a panel per method (paper Fig. 11)."""
    rows = one_setting(scored(frame, "niah", "python run.py -m experiment=niah_grid"))
    if rows.empty:
        raise NotEnoughRows("no grid with default options: python run.py -m experiment=niah_grid")
    methods = style.ordered(rows["method"].unique())
    grids = {method: niah_matrix(rows[rows["method"] == method]) * 100 for method in methods}
    drawing = _heat_maps(grids, "depth (%)", lambda depth: f"{depth:g}")
    style.note(drawing, say(rows, ["method", "meta.depth", "length"]))
    return style.uses(drawing, rows["key"])


def _heat_maps(grids: dict[str, pd.DataFrame], y_label: str, y_text: Any) -> Any:
    tallest = max(len(grid) for grid in grids.values())
    drawing, axes = style.figure(style.TWO_COLUMNS, 1.4 + 0.2 * tallest, len(grids))
    panels = [axes] if len(grids) == 1 else list(axes)
    for panel, (method, grid) in zip(panels, grids.items(), strict=True):
        image = panel.imshow(grid, vmin=0, vmax=100, cmap="cividis", aspect="auto")
        panel.set_title(method, fontsize=8)
        panel.grid(visible=False)
        panel.set_xticks(range(grid.shape[1]), [style.tokens(c) for c in grid.columns])
        first = panel is panels[0]
        panel.set_yticks(range(grid.shape[0]), [y_text(y) if first else "" for y in grid.index])
        panel.set_xlabel("context (tokens)")
        for y in range(grid.shape[0]):
            for x in range(grid.shape[1]):
                value = grid.iloc[y, x]
                ink = "white" if value < 60 else "black"
                text = "" if pd.isna(value) else f"{value:.0f}"
                panel.text(x, y, text, ha="center", va="center", color=ink, fontsize=6)
    panels[0].set_ylabel(y_label)
    drawing.colorbar(image, ax=panels, label="score")
    return drawing
