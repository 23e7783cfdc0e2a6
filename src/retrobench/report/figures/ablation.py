"""One figure per swept option: what it does to accuracy, recall, build time, hits and bytes."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import pandas as pd

from retrobench.report import headroom
from retrobench.report.checks.published import DEFAULTS, HIT_RATIO, RETROINFER
from retrobench.report.figures import parts, style
from retrobench.report.rows import moved_bytes, require, shared_samples, token_count
from retrobench.stats.intervals import mean_interval
from retrobench.store.row_file import OK


@dataclass(frozen=True, slots=True)
class Ablation:
    """An option ``method.<name>`` and how its axis reads.

    ``within``: a line for each value of this column (a method's option, or ``method`` itself).
    """

    name: str
    label: str
    experiment: str
    scale: str = "log"  # log | linear | names
    within: str = ""

    @property
    def column(self) -> str:
        """The option's column in the rows."""
        return f"method.{self.name}"

    @property
    def line_columns(self) -> list[str]:
        """Columns whose values make a line each."""
        if self.within == "method":
            return ["method"]
        return [f"method.{self.within}"] if self.within else []

    @property
    def command(self) -> str:
        """What makes the rows."""
        return f"python run.py -m experiment={self.experiment}"

    def places(self, values: pd.Series) -> dict[Any, float]:
        """Value of the option to its place on the axis."""
        known = sorted(values.unique())
        return {v: float(i if self.scale == "names" else v) for i, v in enumerate(known)}


ABLATIONS = (
    Ablation("tokens_per_cluster", "tokens per centroid", "cluster_count", within="method"),
    Ablation("segment_tokens", "segment (tokens)", "segment_size"),
    Ablation("retrieval_frac", "retrieval zone (fraction)", "zone_retrieval"),
    Ablation("estimation_frac", "estimation zone (fraction)", "zone_estimation", "linear"),
    Ablation("local_tokens", "local window (tokens)", "zone_steady", within="sink_tokens"),
    Ablation("kmeans_iterations", "k-means iterations", "kmeans_iterations", within="final_assign"),
    Ablation("final_assign", "last assignment", "final_assign", "names"),
    Ablation("cache_frac", "cache (fraction of KV)", "cache_ratio"),
    Ablation("page_tokens", "page (tokens)", "page_size"),
    Ablation("eviction", "eviction policy", "eviction_policy", "names"),
)


@dataclass(frozen=True, slots=True)
class Panel:
    """A column of the rows, and the statistic over samples that is drawn of it."""

    label: str
    column: str
    interval: Callable[[pd.Series], parts.Interval] = mean_interval


PANELS = (
    Panel("score", "percent"),
    Panel("recall@100", "fidelity.mean.recall_100"),
    Panel("attention mass", "fidelity.mean.recall"),
    Panel("output error", "fidelity.mean.error"),
    Panel("index build (s)", "seal_s", parts.quartiles),
    Panel("hit ratio", "live.hit_ratio"),
    Panel("MiB per step", "moved_mib", parts.quartiles),
)


def draw(ablation: Ablation, frame: pd.DataFrame) -> Any:
    """A panel for every quantity that the rows hold."""
    rows = select(frame, ablation)
    marked = headroom.lacks_headroom(rows)
    percent = (rows["score"] * 100).mask(marked)
    rows = rows.assign(percent=percent, moved_mib=moved_bytes(rows) / 2**20)
    panels = [p for p in PANELS if p.column in rows and rows[p.column].notna().any()]
    one_row = len(panels) < 5
    shape = {"rows": 1 if one_row else 2, "width": style.TWO_COLUMNS}
    drawing, axes = style.figure(2.1 if one_row else 3.8, len(panels), **shape)
    places = ablation.places(rows[ablation.column])
    for panel_axes, panel in zip(axes, panels, strict=True):
        for i, (label, line) in enumerate(_lines(rows, ablation)):
            points = _points(line, ablation, places, panel)
            join = "none" if ablation.scale == "names" else "-"
            look = {**style.option_look(i), "linestyle": join, "label": label}
            parts.interval_line(panel_axes, points, **look)
        _option_axis(panel_axes, ablation, places)
        _value_axis(panel_axes, panel.label, rows)
    drawing.align_ylabels()
    at_default = DEFAULTS.get(ablation.name) in places.values()
    note = parts.INTERVALS + ", quartiles of times and bytes"
    note += f"; dotted: {RETROINFER}'s default" if at_default else ""
    note += headroom.figure_note(rows, left_out=rows[marked])
    legend = "above" if ablation.within else "none"
    points = [ablation.column, *ablation.line_columns]
    return style.finish(drawing, rows, points, note, legend=legend)


def select(frame: pd.DataFrame, ablation: Ablation) -> pd.DataFrame:
    """Rows that differ in the option alone: the setting with most of its values, shared samples."""
    option, command = ablation.column, ablation.command
    require(option in frame, f"no rows with {option}", command)
    rows = frame[(frame["status"] == OK) & frame[option].notna()]
    if ablation.name != "num_clusters" and "method.num_clusters" in rows:
        rows = rows[rows["method.num_clusters"].isna()]
    common = ["model", "benchmark", "protocol", "budget", "engine.batch", "length"]
    free = {option, *ablation.line_columns}
    options = [c for c in rows if c.startswith("method.") and c not in free]
    settings = [group for _, group in rows.groupby(["method", *common, *options], dropna=False)]
    best = max(settings, key=lambda group: group[option].nunique(), default=rows)
    require(best[option].nunique() > 1, f"needs two values of {option}", command)
    if ablation.within == "method":
        best = _beside(best, settings, common, option)
    best = shared_samples(best, "key" if ablation.within == "method" else option)
    require(len(best), f"no sample was answered for every value of {option}", command)
    return best


def _beside(
    best: pd.DataFrame, settings: list[pd.DataFrame], common: list[str], option: str
) -> pd.DataFrame:
    """The best setting, and that of every other method at the same model, length and budget."""
    where = best[common].iloc[0]
    found = {}
    for group in settings:
        same = group[common].iloc[0]
        method, values = group["method"].iloc[0], group[option].nunique()
        alike = ((same == where) | (same.isna() & where.isna())).all()
        if alike and values > 1 and values > found.get(method, (0,))[0]:
            found[method] = values, group
    return pd.concat([group for _, group in found.values()])


def _lines(rows: pd.DataFrame, ablation: Ablation) -> list[tuple[str, pd.DataFrame]]:
    """(label, rows) of every line."""
    if not ablation.within:
        return [("", rows)]
    name = ablation.within.replace("_", " ")
    if ablation.within == "method":
        return [(method, group) for method, group in style.by_method(rows).items()]
    groups = rows.groupby(ablation.line_columns[0])
    return [(f"{name} {_text(value)}", group) for value, group in groups]


def _points(
    rows: pd.DataFrame, ablation: Ablation, places: dict[Any, float], panel: Panel
) -> list[tuple[float, ...]]:
    groups = rows.groupby(ablation.column)
    known = [(value, group[panel.column].dropna()) for value, group in groups]
    return [(places[value], *panel.interval(found)) for value, found in known if len(found)]


def _option_axis(axes: Any, ablation: Ablation, places: dict[Any, float]) -> None:
    """The option's values, each with its name; the published default as a dotted line."""
    if ablation.scale == "log" and min(places.values()) > 0:
        axes.set_xscale("log", base=2)
        axes.minorticks_off()
    names = [_text(value) for value in places]
    axes.set_xticks(list(places.values()), names)
    if len(places) > 5 or len("".join(names)) > 15:
        axes.tick_params(axis="x", labelrotation=45)
    if ablation.scale == "names":
        axes.set_xlim(-0.5, len(places) - 0.5)
    default = DEFAULTS.get(ablation.name)
    if default in places.values():
        axes.axvline(default, color="#999999", linewidth=0.8, linestyle=":")
    axes.grid(axis="x", visible=False)
    axes.set_xlabel(ablation.label)


def _value_axis(axes: Any, label: str, rows: pd.DataFrame) -> None:
    """From zero; hit ratios with the published band and the best possible policy."""
    axes.set_ylabel(label)
    axes.set_ylim(0, 105 if label == "score" else axes.get_ylim()[1] * 1.05)
    if label != "hit ratio":
        return
    axes.set_ylim(0, 1.02)
    axes.axhspan(*HIT_RATIO, color="#E69F00", alpha=0.2, linewidth=0)
    look = {"xycoords": ("axes fraction", "data"), "fontsize": style.SMALL}
    axes.annotate(f"{RETROINFER}, 5%", (0.03, sum(HIT_RATIO) / 2), va="center", **look)
    best = [c for c in rows if c.endswith("best_hit_ratio") and rows[c].notna().any()]
    if best:  # of the best possible policy on the recorded accesses
        level = rows[best[0]].mean()
        axes.axhline(level, color="#555555", linewidth=0.8, linestyle="--")
        axes.annotate("Belady", (0.97, level - 0.02), ha="right", va="top", **look)


def _text(value: Any) -> str:
    if isinstance(value, str):
        return value
    return token_count(value) if value >= 1024 else f"{value:g}"


# an ablation's figure bears the name of its experiment
FIGURES: dict[str, Callable[[pd.DataFrame], Any]] = {
    ablation.experiment: partial(draw, ablation) for ablation in ABLATIONS
}
