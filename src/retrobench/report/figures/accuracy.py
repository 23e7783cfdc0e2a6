"""Accuracy: RULER by task and length, the needle grid, LongBench groups."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd

from retrobench.report import headroom
from retrobench.report.benchmarks import benchmark, display_name
from retrobench.report.checks.published import SCORES
from retrobench.report.figures import parts, style
from retrobench.report.rows import (
    one_budget,
    one_setting,
    require,
    score_grid,
    scored,
    shared_samples,
    token_count,
    usual_length,
)
from retrobench.stats.intervals import mean_interval

_MOST_BARS = 8  # methods that bars tell apart
_BY_LENGTH = "python run.py -m experiment=ruler_by_length"


def ruler_scores(frame: pd.DataFrame) -> Any:
    """Mean score per RULER task and method (bars), at the length with most rows."""
    command = "python run.py -m method=full,retroinfer task=ruler"
    rows = usual_length(one_setting(scored(frame, "ruler", command), command))
    return _bars(rows, f"RULER at {token_count(rows['length'].iloc[0])}")


def longbench(frame: pd.DataFrame) -> Any:
    """LongBench data sets by method (bars), in the order of the benchmark's categories."""
    command = "python run.py -m experiment=longbench"
    rows = one_setting(scored(frame, "longbench", command), command)
    order = {name: i for i, name in enumerate(benchmark("longbench").figure_tasks)}
    rows = rows[rows["task"].isin(order)]
    require(len(rows), "no English data set", command)
    return _bars(rows.sort_values("task", key=lambda t: t.map(order), kind="stable"), "")


def _bars(rows: pd.DataFrame, title: str) -> Any:
    """Bars by task and method; a heat map where these are too many."""
    methods = style.by_method(rows)
    if len(methods) > _MOST_BARS:
        return _task_map(rows, title)
    drawing, (axes,) = style.figure(2.6, width=style.TWO_COLUMNS)
    series = {method: (own, {"color": style.color(method)}) for method, own in methods.items()}
    parts.score_bars(axes, rows, series)
    axes.set_title(title)
    return style.finish(
        drawing, rows, ["method", "task"], parts.INTERVALS + headroom.figure_note(rows)
    )


def _task_map(rows: pd.DataFrame, title: str) -> Any:
    """Mean scores, a line per method and a column per task."""
    tasks, methods = list(dict.fromkeys(rows["task"])), style.by_method(rows)
    means = {name: 100 * own.groupby("task")["score"].mean() for name, own in methods.items()}
    grid = pd.DataFrame(means).T[tasks]
    drawing, (axes,) = style.figure(1.2 + 0.17 * len(grid), width=style.TWO_COLUMNS)
    image = parts.heat_map(axes, grid, title, 100)
    _write_values(axes, grid, grid * 0)
    marked = rows.loc[headroom.lacks_headroom(rows), "task"].unique()
    parts.task_axis(axes, rows, tasks, marked=marked)
    axes.set_yticks(range(len(grid)), list(grid.index))
    drawing.colorbar(image, ax=axes, label="score")
    note = headroom.figure_note(rows)
    return style.finish(drawing, rows, ["method", "task"], note, legend="none")


def ruler_by_length(frame: pd.DataFrame) -> Any:
    """Average over tasks by context length (RetroInfer paper, Fig. 10)."""
    whole = one_setting(scored(frame, "ruler", _BY_LENGTH), _BY_LENGTH)
    rows = headroom.informative(whole)
    require(rows["length"].nunique() > 1, "needs two lengths with headroom", _BY_LENGTH)
    drawing, (axes,) = style.figure(2.7)
    methods = style.by_method(rows)
    for index, (method, line) in enumerate(methods.items()):
        _length_line(axes, line, method, (index, len(methods)))
    parts.token_axis(axes, rows["length"])
    axes.set(ylabel="mean score of RULER tasks", ylim=(-3, 105))
    note = parts.INTERVALS + headroom.figure_note(rows, left_out=whole.drop(rows.index))
    return style.finish(drawing, rows, ["method", "length"], note, columns=3)


def _length_line(axes: Any, rows: pd.DataFrame, method: str, slot: tuple[int, int]) -> None:
    """A method's line with intervals; published averages where ours is over the same tasks.

    ``slot``: its number and how many there are. Lines stand beside each other, not one on another.
    """
    points, whole = [], []
    for length, group in rows.groupby("length"):
        tasks = group.groupby("task")["score"].mean()
        _, low, high = mean_interval(group["score"])
        shift = tasks.mean() - group["score"].mean()  # tasks weigh the same, samples need not
        points.append((length, *(100 * v for v in (tasks.mean(), low + shift, high + shift))))
        whole += [length] if len(tasks) == benchmark("ruler").num_tasks else []
    look = style.look(method)
    beside = 2 ** (0.4 * parts.slot_place(0, slot))
    parts.interval_line(axes, np.array(points, dtype=float) * (beside, 1, 1, 1), **look)
    name = rows["model"].iloc[0].lower()
    of_model = SCORES["model"].map(lambda part: part in name)
    known = SCORES[of_model & (SCORES["method"] == method)]
    known = known[(known["task"] == "avg") & known["length"].isin(whole)]
    if len(known):
        look["label"] = f"{method} ({known['source'].iloc[0]})"
        axes.plot(known["length"], known["score"], **look, **style.PUBLISHED)


def ruler_tasks(frame: pd.DataFrame) -> Any:
    """Score by task and length, a panel per method (heat map)."""
    rows = one_setting(scored(frame, "ruler", _BY_LENGTH), _BY_LENGTH)
    require(rows["length"].nunique() > 1, "needs two lengths", _BY_LENGTH)
    return _score_maps(rows, "task", "", lambda task: display_name("ruler", task))


def niah_grid(frame: pd.DataFrame) -> Any:
    """Score by needle depth and context length, a panel per method (paper Fig. 11)."""
    command = "python run.py -m experiment=niah_grid"
    rows = one_setting(scored(frame, "niah", command), command)
    return _score_maps(rows.sort_values("meta.depth"), "meta.depth", "depth (%)", "{:g}".format)


def sparse_prefill(frame: pd.DataFrame) -> Any:
    """Mean RULER score by kind of prefill, a panel per method (paper Fig. 12)."""
    command = "python run.py -m experiment=sparse_prefill"
    rows = headroom.informative(scored(frame, "ruler", command))
    changed = rows["changed"].fillna("")
    setting = changed.str.replace(r"\bprefill[.=]", "", regex=True).replace("", "exact")
    alone = changed.str.replace(r"\bprefill\S*=\S+", "", regex=True).str.strip() == ""
    rows = rows.assign(prefill=setting)[alone & (rows["engine.batch"] == 1)]
    rows = shared_samples(one_budget(rows), "prefill")
    kind = rows["prefill"].str.split().str[0]
    if kind.nunique() == rows["prefill"].nunique():  # else options tell two settings apart
        rows = rows.assign(prefill=kind)
    require(rows["prefill"].nunique() > 1, "needs two kinds of prefill", command)
    methods = style.by_method(rows)
    drawing, panels = style.figure(2.6, len(methods), width=style.TWO_COLUMNS)
    for panel, (method, own) in zip(panels, methods.items(), strict=True):
        kinds = sorted(own["prefill"].unique(), key=lambda name: (name != "exact", name))
        for place, name in enumerate(kinds):
            part = own[own["prefill"] == name]
            mean, low, high = (100 * v for v in mean_interval(part["score"].to_numpy(float)))
            panel.bar(place, mean, 0.7, color=style.color(method))
            panel.errorbar(place, mean, [[mean - low], [high - mean]], color="black", capsize=2)
            read = part["prefill_computed_frac"].mean() if "prefill_computed_frac" in part else 1
            text = "" if name == "exact" else f"{read:.0%} computed"
            panel.text(place, 2, text, ha="center", color="white", fontsize=style.SMALL)
        panel.set_xticks(range(len(kinds)), [name.replace(" ", "\n") for name in kinds])
        panel.set(title=method, ylim=(0, 105))
    panels[0].set_ylabel("mean score of RULER tasks")
    note = parts.INTERVALS + headroom.figure_note(rows)
    return style.finish(drawing, rows, ["method", "prefill"], note, legend="none")


def _score_maps(rows: pd.DataFrame, by: str, label: str, text: Callable[[Any], str]) -> Any:
    """Mean scores by the column ``by`` and length, a heat map per method."""
    rows = rows.assign(marked=headroom.lacks_headroom(rows))
    methods = style.by_method(rows)
    grids = {name: 100 * score_grid(own, by) for name, own in methods.items()}
    height = 1.4 + 0.2 * max(map(len, grids.values()))
    drawing, panels = style.figure(height, len(grids), width=style.TWO_COLUMNS)
    for panel, (method, grid) in zip(panels, grids.items(), strict=True):
        image = parts.heat_map(panel, grid, method, 100)
        panel.set_xticks(range(grid.shape[1]), [token_count(c) for c in grid.columns])
        first = panel is panels[0]
        panel.set_yticks(range(len(grid)), [text(y) if first else "" for y in grid.index])
        panel.set_xlabel("context (tokens)")
        _write_values(panel, grid, score_grid(methods[method], by, "marked"))
    panels[0].set_ylabel(label)
    drawing.colorbar(image, ax=panels, label="score")
    note = headroom.figure_note(rows)
    return style.finish(drawing, rows, ["method", by, "length"], note, legend="none")


def _write_values(panel: Any, grid: pd.DataFrame, marked: pd.DataFrame) -> None:
    for (y, x), value in np.ndenumerate(grid):
        if not np.isnan(value):
            text = f"{value:.0f}" + (headroom.MARK if marked.iat[y, x] > 0 else "")
            look = {"color": "white" if value < 60 else "black", "fontsize": style.SMALL}
            panel.text(x, y, text, ha="center", va="center", **look)


_DRAWN = (ruler_scores, ruler_by_length, ruler_tasks, niah_grid, longbench, sparse_prefill)
FIGURES = {draw.__name__: draw for draw in _DRAWN}
