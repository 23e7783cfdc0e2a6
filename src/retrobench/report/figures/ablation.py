"""One figure per swept option: what it does to accuracy, recall, build time, hits and bytes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pandas as pd

from retrobench.report.checks.published import DEFAULTS, HIT_RATIO, RETROINFER
from retrobench.report.figures import style
from retrobench.report.figures.style import NotEnoughRows
from retrobench.report.rows import say, shared_samples
from retrobench.report.tables.scores import moved_bytes
from retrobench.stats.intervals import mean_interval
from retrobench.store.results import OK


@dataclass(frozen=True, slots=True, kw_only=True)
class Ablation:
    """An option ``method.<name>`` and how its axis reads. ``within``: a line for each value."""

    name: str
    label: str
    experiment: str
    scale: str = "log"  # log | linear | names
    within: str = ""


ABLATIONS = (
    Ablation(name="tokens_per_cluster", label="tokens per centroid", experiment="cluster_count"),
    Ablation(name="segment_tokens", label="segment (tokens)", experiment="segment_size"),
    Ablation(name="retrieval_frac", label="retrieval zone (fraction)", experiment="zone_retrieval"),
    Ablation(
        name="estimation_frac",
        label="estimation zone (fraction)",
        experiment="zone_estimation",
        scale="linear",
    ),
    Ablation(
        name="local_tokens",
        label="local window (tokens)",
        experiment="zone_steady",
        within="sink_tokens",
    ),
    Ablation(
        name="kmeans_iterations",
        label="k-means iterations",
        experiment="kmeans_iterations",
        within="final_assign",
    ),
    Ablation(
        name="final_assign", label="last assignment", experiment="final_assign", scale="names"
    ),
    Ablation(name="cache_frac", label="cache (fraction of KV)", experiment="cache_ratio"),
    Ablation(name="page_tokens", label="page (tokens)", experiment="page_size"),
    Ablation(name="eviction", label="eviction policy", experiment="eviction_policy", scale="names"),
)


def figures() -> dict[str, Callable[[pd.DataFrame], Any]]:
    """Figure name (its experiment's) to function."""
    return {ablation.experiment: _Figure(ablation) for ablation in ABLATIONS}


@dataclass(frozen=True, slots=True)
class _Figure:
    ablation: Ablation

    def __call__(self, frame: pd.DataFrame) -> Any:
        return draw(frame, self.ablation)


# (axis label, column or function, statistic)
_Values = Callable[[pd.DataFrame], pd.Series]
_PANELS: tuple[tuple[str, _Values, str], ...] = (
    ("score", lambda rows: rows["score"] * 100, "mean"),
    ("recall@100", lambda rows: rows["fidelity.mean.recall_100"], "mean"),
    ("attention mass", lambda rows: rows["fidelity.mean.recall"], "mean"),
    ("index build (s)", lambda rows: rows["seal_s"], "median"),
    ("hit ratio", lambda rows: rows["live.hit_ratio"], "mean"),
    ("MiB per step", lambda rows: moved_bytes(rows) / 2**20, "median"),
)


def draw(frame: pd.DataFrame, ablation: Ablation) -> Any:
    """A panel for every quantity that the rows hold."""
    rows = _select(frame, ablation)
    panels = [p for p in _PANELS if _has(p[1], rows)]
    drawing, axes = style.figure(style.TWO_COLUMNS, 2.1 if len(panels) < 5 else 3.8, *_grid(panels))
    flat = list(getattr(axes, "flat", [axes]))
    for spare in flat[len(panels) :]:
        spare.set_axis_off()
    places = _places(rows[f"method.{ablation.name}"], ablation)
    for axis, (label, values, statistic) in zip(flat, panels, strict=False):
        for i, (line, group) in enumerate(_lines(rows, ablation)):
            _draw_line(axis, group, ablation, places, (values, statistic), (i, line))
        _finish(axis, ablation, places, label)
        if label == "hit ratio":
            _best(axis, rows)
    if ablation.within:
        handles, labels = flat[0].get_legend_handles_labels()
        drawing.legend(handles, labels, loc="outside upper center", ncols=len(labels))
    drawing.align_ylabels()
    note = say(rows, [f"method.{ablation.name}", *_within(ablation)])
    marked = DEFAULTS.get(ablation.name) in places.values()
    style.note(drawing, f"{note}; dotted: {RETROINFER}'s default" if marked else note)
    return style.uses(drawing, rows["key"])


def _grid(panels: list[Any]) -> tuple[int, int]:
    columns = len(panels) if len(panels) < 5 else 3
    return columns, -(-len(panels) // columns)


def _has(values: _Values, rows: pd.DataFrame) -> bool:
    try:
        return bool(values(rows).notna().any())
    except KeyError:
        return False


def _within(ablation: Ablation) -> list[str]:
    return [f"method.{ablation.within}"] if ablation.within else []


def _select(frame: pd.DataFrame, ablation: Ablation) -> pd.DataFrame:
    """Rows that differ in the option alone: the setting with most of its values, shared samples."""
    option, command = (
        f"method.{ablation.name}",
        f"python run.py -m experiment={ablation.experiment}",
    )
    if option not in frame:
        raise NotEnoughRows(f"no rows with {option}: {command}")
    rows = frame[(frame["status"] == OK) & frame[option].notna()]
    if ablation.name != "num_clusters" and "method.num_clusters" in rows:
        rows = rows[rows["method.num_clusters"].isna()]
    free = {option, *_within(ablation)}
    fixed = ["model", "method", "benchmark", "protocol", "budget", "engine.batch", "length"]
    fixed += [c for c in rows if c.startswith("method.") and c not in free]
    best, most = None, 1
    for _, group in rows.groupby(fixed, dropna=False):
        if group[option].nunique() > most:
            best, most = group, group[option].nunique()
    if best is None:
        raise NotEnoughRows(f"needs two values of {option}: {command}")
    best = shared_samples(best, option)
    if best.empty:
        raise NotEnoughRows(f"no sample was answered for every value of {option}: {command}")
    return best


def _lines(rows: pd.DataFrame, ablation: Ablation) -> list[tuple[str, pd.DataFrame]]:
    if not ablation.within:
        return [("", rows)]
    column = f"method.{ablation.within}"
    name = ablation.within.replace("_", " ")
    return [(f"{name} {_text(v)}", group) for v, group in rows.groupby(column)]


def _places(values: pd.Series, ablation: Ablation) -> dict[Any, float]:
    """Value of the option to its place on the axis."""
    known = sorted(values.unique())
    if ablation.scale == "names":
        return {value: float(i) for i, value in enumerate(known)}
    return {value: float(value) for value in known}


def _draw_line(
    axis: Any,
    rows: pd.DataFrame,
    ablation: Ablation,
    places: dict[Any, float],
    what: tuple[_Values, str],
    line: tuple[int, str],
) -> None:
    values, statistic = what
    points = []
    for value, group in rows.groupby(f"method.{ablation.name}"):
        found = values(group).dropna()
        if len(found):
            points.append((places[value], *_statistic(found, statistic)))
    if not points:
        return
    x, middle, low, high = zip(*points, strict=True)
    index, label = line
    color = style.COLORS[1:][index % 7]
    axis.errorbar(
        x,
        middle,
        yerr=[
            [m - l for m, l in zip(middle, low, strict=True)],
            [h - m for m, h in zip(middle, high, strict=True)],
        ],
        color=color,
        marker=style.MARKERS[1:][index % 7],
        linestyle="none" if ablation.scale == "names" else "-",
        linewidth=1.2,
        capsize=2,
        label=label,
    )


def _statistic(values: pd.Series, name: str) -> tuple[float, float, float]:
    """Mean with its 95% bootstrap interval, or median with its quartiles."""
    if name == "mean":
        return mean_interval(values)
    return values.median(), values.quantile(0.25), values.quantile(0.75)


def _finish(axis: Any, ablation: Ablation, places: dict[Any, float], label: str) -> None:
    if ablation.scale == "log" and min(places.values()) > 0:
        axis.set_xscale("log", base=2)
        axis.minorticks_off()
    axis.set_xticks(list(places.values()), [_text(value) for value in places])
    if len(places) > 5:
        axis.tick_params(axis="x", labelrotation=45)
    if ablation.scale == "names":
        axis.set_xlim(-0.5, len(places) - 0.5)
    default = DEFAULTS.get(ablation.name)
    if default in places.values():
        axis.axvline(default, color="#999999", linewidth=0.8, linestyle=":")
    axis.grid(axis="x", visible=False)
    axis.set_xlabel(ablation.label)
    axis.set_ylabel(label)
    top = axis.get_ylim()[1]
    axis.set_ylim(0, 105 if label == "score" else top * 1.05)
    if label == "hit ratio":
        axis.axhspan(*HIT_RATIO, color="#E69F00", alpha=0.2, linewidth=0)
        axis.set_ylim(0, 1.02)
        place = (0.03, sum(HIT_RATIO) / 2)
        axis.annotate(
            f"{RETROINFER}, 5%", place, xycoords=("axes fraction", "data"), fontsize=6, va="center"
        )


def _best(axis: Any, rows: pd.DataFrame) -> None:
    """The hit ratio of the best possible policy on the recorded accesses (Belady), if known."""
    found = [c for c in rows if c.endswith("best_hit_ratio") and rows[c].notna().any()]
    if found:
        axis.axhline(rows[found[0]].mean(), color="#555555", linewidth=0.8, linestyle="--")
        place = (0.97, rows[found[0]].mean() - 0.02)
        look = {"fontsize": 6, "ha": "right", "va": "top"}
        axis.annotate("Belady", place, xycoords=("axes fraction", "data"), **look)


def _text(value: Any) -> str:
    if isinstance(value, str):
        return value
    return style.tokens(value) if value >= 1024 else f"{value:g}"
