"""Charts of the page, as Vega-Lite: the Pareto front, scores by length, the needle maps.

All texts of the data stay values of fields with names of our own, which Vega draws as text.
"""

from typing import Any

import altair as alt
import numpy as np
import pandas as pd

from retrobench.report import headroom
from retrobench.report.figures.style import COLORS, ordered
from retrobench.report.page.tables import interval_of_average
from retrobench.report.rows import moved_bytes, step_seconds, token_count
from retrobench.report.tables.labels import each_label, short_label
from retrobench.report.tables.scores import score_entries
from retrobench.stats.intervals import mean_interval
from retrobench.store.row_file import OK

# black is for paper: the page has a dark form as well
_PALETTE = ["#8a8f98", *COLORS[1:7], "#b07aa1", "#9c755f", "#76b7b2", "#edc948"]
_COSTS = {
    "MiB read or copied per step": lambda rows: moved_bytes(rows) / 2**20,
    "tokens attended": lambda rows: rows["live.attended_tokens"],
    "ms per step": lambda rows: 1000 * step_seconds(rows),
}
_SCORE = alt.Scale(domain=[-3, 103], nice=False)
_SCORE_AXIS = alt.Axis(values=list(range(0, 101, 20)))

_TOKENS = "datum.value >= 1024 ? format(datum.value / 1024, '.3~g') + 'K' : datum.value"


def charts(frame: pd.DataFrame) -> list[tuple[str, dict[str, Any]]]:
    """(title, specification) of every chart that the rows of a model and benchmark allow."""
    good = frame[(frame["status"] == OK) & frame["score"].notna()]
    if good.empty:
        return []
    good = good.assign(label=good["key"].map(_names(good)))
    made = [
        ("Pareto front: score against cost", _pareto(frame)),
        ("Score by context length", _by_length(good)),
        ("Needle maps: score by depth and length", _maps(good)),
    ]
    return [(title, chart.to_dict()) for title, chart in made if chart is not None]


def _names(frame: pd.DataFrame) -> dict[str, str]:
    """A cell's name in legends, as short as tells them apart."""
    found = {key: short_label(labels) for (key,), labels in each_label(frame)}
    twice = {name for name in found.values() if list(found.values()).count(name) > 1}
    return {key: f"{name} {key[:6]}" if name in twice else name for key, name in found.items()}


def _color(points: pd.DataFrame) -> alt.Color:
    methods = ordered(points["method"])
    known = {name: _PALETTE[i % len(_PALETTE)] for i, name in enumerate(methods)}
    scale = alt.Scale(domain=list(known), range=list(known.values()))
    return alt.Color("method:N", scale=scale, legend=alt.Legend(symbolOpacity=1), title=None)


def _pareto(frame: pd.DataFrame) -> alt.LayerChart | None:
    points = pareto_points(frame)
    if points.empty or points["key"].nunique() < 2:
        return None
    costs = list(dict.fromkeys(points["cost"]))
    picked = alt.param(
        name="cost", value=costs[0], bind=alt.binding_select(options=costs, name="cost: ")
    )
    tips = [
        *("method:N", "options:N", "budget:N", "key:N"),
        alt.Tooltip("score:Q", format=".1f"),
        alt.Tooltip("low:Q", format=".1f", title="95% from"),
        alt.Tooltip("high:Q", format=".1f", title="95% to"),
        alt.Tooltip("x:Q", format=",.4~g", title="cost"),
        "front:N",
    ]
    ticks = alt.Axis(format=".4~g")
    x = alt.X("x:Q", title=None, axis=ticks, scale=alt.Scale(type="log", nice=False, padding=24))
    base = alt.Chart(points).transform_filter("datum.cost === cost").encode(x=x)
    front = base.transform_filter("datum.front === 'yes'")
    front = front.mark_line(interpolate="step-after", strokeDash=[4, 4], color="#8a8f98")
    y = alt.Y("score:Q", scale=_SCORE, axis=_SCORE_AXIS, title="mean score")
    bars = base.mark_rule(opacity=0.6).encode(alt.Y("low:Q"), alt.Y2("high:Q"), _color(points))
    shape = alt.Shape("method:N", title=None, scale=alt.Scale(domain=ordered(points["method"])))
    dots = base.mark_point(filled=True, size=110, opacity=0.85).encode(
        y, _color(points), shape, tooltip=tips
    )
    layers = alt.layer(front.encode(y=y), bars, dots).add_params(picked)
    name = alt.Title(text=alt.ExprRef("cost"), orient="bottom", fontSize=11)
    return layers.properties(width="container", height=300, title=name)


def pareto_points(frame: pd.DataFrame) -> pd.DataFrame:
    """A row per cell and kind of cost: median cost, mean score of the columns with headroom.

    ``front`` says whether no other cell has a higher score at no more cost, or less cost at no
    lower score.
    """
    entries, average = score_entries(frame)
    good = headroom.informative(frame[(frame["status"] == OK) & frame["score"].notna()])
    found = []
    for (key,), labels in each_label(good):
        if np.isnan(mean := average.get(key, np.nan)):
            continue
        low, high = interval_of_average(entries.loc[key])
        rows = good[good["key"] == key]
        about = {"key": key[:6], "method": labels["method"], "options": labels["changed"]}
        about |= {"budget": labels["budget"], "score": mean, "low": low, "high": high}
        medians = {name: float(of(rows).median()) for name, of in _COSTS.items()}
        found += [{**about, "cost": name, "x": x} for name, x in medians.items() if x > 0]
    points = pd.DataFrame(found)
    if points.empty:
        return points
    return points.assign(front=["yes" if _is_best(p, points) else "no" for p in found])


def _is_best(point: dict[str, Any], points: pd.DataFrame) -> bool:
    others = points[points["cost"] == point["cost"]]
    no_worse = (others["x"] <= point["x"]) & (others["score"] >= point["score"])
    better = (others["x"] < point["x"]) | (others["score"] > point["score"])
    return not (no_worse & better).any()


def _by_length(good: pd.DataFrame) -> alt.LayerChart | None:
    rows = headroom.informative(good)
    if rows["length"].nunique() < 2:
        return None
    points = _means(rows, ["label", "method", "length"])
    ticks = alt.Axis(values=sorted(set(points["length"])), labelExpr=_TOKENS, labelOverlap=True)
    scale = alt.Scale(type="log", nice=False, padding=12)
    x = alt.X("length:Q", scale=scale, axis=ticks, title="context (tokens)")
    y = alt.Y("score:Q", scale=_SCORE, axis=_SCORE_AXIS, title="mean score")
    base = alt.Chart(points).encode(x=x, detail="label:N", color=_color(points))
    band = base.mark_area(opacity=0.12).encode(alt.Y("low:Q"), alt.Y2("high:Q"))
    line = base.mark_line(point=alt.OverlayMarkDef(size=60)).encode(y, tooltip=_tips("length:Q"))
    return alt.layer(band, line).properties(width="container", height=280)


def _maps(good: pd.DataFrame) -> alt.FacetChart | None:
    if good["benchmark"].iloc[0] != "niah":  # others put needles at random depths
        return None
    rows = good.assign(depth=good["meta.depth"].astype(float).round())
    points = _means(rows, ["label", "depth", "length"])
    points = points.assign(context=points["length"].map(token_count))
    order = list(dict.fromkeys(points.sort_values("length")["context"]))
    x = alt.X("context:O", sort=order, title="context", axis=alt.Axis(labelAngle=0))
    y = alt.Y("depth:O", title="depth (%)")
    base = alt.Chart().encode(x, y)
    color = alt.Color("score:Q", scale=alt.Scale(domain=[0, 100], scheme="viridis"))
    boxes = base.mark_rect().encode(color, tooltip=_tips("depth:Q", "length:Q"))
    ink = alt.condition("datum.score > 60", alt.value("#111"), alt.value("#fff"))
    texts = base.mark_text(fontSize=10).encode(alt.Text("score:Q", format=".0f"), color=ink)
    size = {"width": alt.Step(38), "height": alt.Step(20)}
    panel = alt.layer(boxes, texts, data=points).properties(**size)
    columns = max(1, min(6, 960 // (38 * len(order) + 40)))
    names = list(dict.fromkeys(points["label"]))
    return panel.facet(facet=alt.Facet("label:N", sort=names, title=None), columns=columns)


def _tips(*names: str) -> list[Any]:
    ends = {"score": "score", "low": "95% from", "high": "95% to"}
    found = [alt.Tooltip(f"{n}:Q", format=".1f", title=title) for n, title in ends.items()]
    return ["label:N", *names, *found, "samples:Q"]


def _means(rows: pd.DataFrame, by: list[str]) -> pd.DataFrame:
    """Mean score x 100 with its interval, and the number of samples."""
    found = []
    for names, own in rows.groupby(by, sort=False):
        mean, low, high = (100 * value for value in mean_interval(own["score"].astype(float)))
        values = {"score": mean, "low": low, "high": high, "samples": len(own)}
        found.append({**dict(zip(by, names, strict=True)), **values})
    return pd.DataFrame(found)
