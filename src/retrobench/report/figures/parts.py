"""Parts that figures share: lines and bars with intervals, heat maps, axes."""

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import pandas as pd

from retrobench.report import headroom
from retrobench.report.benchmarks import display_name
from retrobench.report.figures import style
from retrobench.report.rows import token_count
from retrobench.stats.intervals import mean_interval

INTERVALS = "; 95% bootstrap intervals"  # of mean scores, for the line below a figure
Interval = tuple[float, float, float]  # middle, low, high


def quartiles(values: pd.Series) -> Interval:
    """Median and quartiles."""
    return values.median(), values.quantile(0.25), values.quantile(0.75)


def interval_line(axes: Any, points: Sequence[Any] | np.ndarray, **look: Any) -> None:
    """A line through points ``(x, middle, low, high)``, with their intervals."""
    if len(points):
        x, middle, low, high = np.array(points, dtype=float).T
        errors = np.clip([middle - low, high - middle], 0, None)
        axes.errorbar(x, middle, yerr=errors, linewidth=1.2, capsize=2, **look)


def slot_place(x: float, slot: tuple[int, int]) -> float:
    """Where the bar ``slot`` = (index, count) stands in the group of bars around ``x``."""
    index, count = slot
    return x + (index - (count - 1) / 2) * 0.8 / count


def slot_width(slot: tuple[int, int]) -> float:
    """Width of a bar in a group."""
    return 0.92 * 0.8 / slot[1]


def interval_bar(axes: Any, x: float, slot: tuple[int, int], value: Interval, **look: Any) -> None:
    """A bar of the group around ``x``, with its interval."""
    middle, low, high = value
    error = {"elinewidth": 0.8, "capsize": 1.5, "ecolor": "#777777"}
    spread = [[middle - low], [high - middle]]
    place = slot_place(x, slot)
    axes.bar(place, middle, slot_width(slot), yerr=spread, error_kw=error, **look)
    if middle == 0:  # an empty place would read as missing
        axes.text(place, 1, "0", ha="center", va="bottom", fontsize=style.SMALL)


def score_bars(
    axes: Any, rows: pd.DataFrame, series: dict[str, tuple[pd.DataFrame, dict[str, Any]]]
) -> None:
    """Mean score of every sub-task in ``rows``: a bar per series (label: its rows and look)."""
    tasks = list(dict.fromkeys(rows["task"]))
    for index, (label, (own, look)) in enumerate(series.items()):
        axes.bar([0], [0], label=label, **look)
        for x, task in enumerate(tasks):
            scores = own.loc[own["task"] == task, "score"] * 100
            if len(scores):
                interval_bar(axes, x, (index, len(series)), mean_interval(scores), **look)
    task_axis(axes, rows, tasks, marked=rows.loc[headroom.lacks_headroom(rows), "task"].unique())
    axes.set(ylim=(0, 105), ylabel="score")


def task_axis(
    axes: Any, rows: pd.DataFrame, tasks: Sequence[str], marked: Iterable[str] = ()
) -> None:
    """Names of sub-tasks of one benchmark below groups of bars; those without headroom marked."""
    marks = dict.fromkeys(marked, headroom.MARK)
    names = [display_name(rows["benchmark"].iloc[0], task) + marks.get(task, "") for task in tasks]
    group_axis(axes, names)
    if len(names) > 7:
        axes.tick_params(axis="x", labelrotation=30)


def group_axis(axes: Any, names: Sequence[str]) -> None:
    """Names below groups of bars."""
    axes.set_xticks(range(len(names)), names)
    axes.grid(axis="x", visible=False)


def token_axis(axes: Any, lengths: Iterable[float]) -> None:
    """Context lengths on a log scale, each with its number."""
    _log2_axis(axes, lengths, token_count, "context (tokens)")


def batch_axis(axes: Any, batches: Iterable[float]) -> None:
    """Batch sizes on a log scale, each with its number; rates from zero."""
    _log2_axis(axes, batches, "{:g}".format, "batch")
    axes.set_ylabel("tokens/s")
    axes.set_ylim(bottom=0)


def _log2_axis(axes: Any, values: Iterable[float], text: Any, label: str) -> None:
    values = sorted(set(values))
    axes.set_xscale("log", base=2)
    axes.xaxis.minorticks_off()
    axes.set_xticks(values, [text(value) for value in values])
    axes.set_xlabel(label)


def heat_map(
    axes: Any, grid: pd.DataFrame | np.ndarray, title: str, top: float, log: bool = False
) -> Any:
    """A grid of values from 0 (on a log scale: 1) to ``top`` as colours."""
    from matplotlib.colors import LogNorm, Normalize

    norm = LogNorm(1, top) if log else Normalize(0, top)
    image = axes.imshow(grid, norm=norm, cmap="cividis", aspect="auto")
    axes.set_title(title)
    axes.grid(visible=False)
    return image


def out_of_memory(axes: Any, places: Iterable[float], color: str, order: int = 0) -> None:
    """Write OOM where a value would stand, a line of text higher for each ``order``."""
    for place in sorted(set(places)):
        where = {"xycoords": ("data", "axes fraction"), "ha": "center", "fontsize": style.SMALL}
        axes.annotate("OOM", (place, 0.02 + 0.07 * order), color=color, **where)


def beside_point(axes: Any, text: str, point: tuple[float, float], **look: Any) -> None:
    """A small text a little off a point; ``xytext`` in points."""
    axes.annotate(text, point, textcoords="offset points", fontsize=style.SMALL, **look)


def few_per_decade() -> Any:
    """Ticks of a log axis at 1, 2 and 5, to be written as plain numbers."""
    from matplotlib.ticker import LogLocator

    return LogLocator(subs=(1.0, 2.0, 5.0))
