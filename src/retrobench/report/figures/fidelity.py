"""Figures of fidelity rows (`measure=fidelity`): where attention lies and how far methods are."""

from typing import Any

import numpy as np
import pandas as pd

from retrobench.report.benchmarks import display_name
from retrobench.report.figures import parts, style
from retrobench.report.rows import one_budget, require
from retrobench.report.tables.fidelity import common_layers, layer_means, layer_range
from retrobench.store.row_file import OK

TRACES = "retrobench traces; python run.py -m experiment=trace_methods"
COMMAND = "python run.py -m method=full,oracle_topk,retroinfer,quest,random measure=score,fidelity"


def fidelity_mass_cdf(frame: pd.DataFrame) -> Any:
    """Attention mass in the heaviest share of the context, by benchmark task."""
    rows = _measured(frame)
    drawing, (axes,) = style.figure(2.6)
    for i, (task, group) in enumerate(rows.groupby("task", sort=False)):
        curves = [measured["cdf"]["mass"] for measured in group["fidelity"]]
        percent = 100 * np.array(group["fidelity"].iloc[0]["cdf"]["frac"])
        color = style.COLORS[i % len(style.COLORS)]
        axes.plot(
            percent,
            np.mean(curves, 0),
            color=color,
            label=display_name(group["benchmark"].iloc[0], task),
        )
    axes.set(xlabel="heaviest tokens (% of context)", ylabel="attention mass")
    axes.set(xscale="log", ylim=(0, 1.02))
    return style.finish(drawing, rows, ["key", "task"], legend="inside")


def attention_tokens(frame: pd.DataFrame) -> Any:
    """How many tokens hold 50, 90 and 99 % of the attention mass, by layer and head."""
    rows = _measured(frame)
    rows = rows[rows["length"] == rows["length"].max()]
    known = [measured for measured in rows["fidelity"] if "tokens_90" in measured["by_layer_head"]]
    require(known, "rows of measure=fidelity are older than this figure", COMMAND)
    drawing, panels = style.figure(3.2, 3)
    for panel, mass in zip(panels, (50, 90, 99), strict=True):
        grid = np.mean([measured["by_layer_head"][f"tokens_{mass}"] for measured in known], 0)
        title = f"{mass} %: median {np.median(grid):.0f}"
        image = parts.heat_map(panel, grid, title, int(rows["length"].iloc[0]), log=True)
        layers = known[0]["layers"]
        step = -(-len(layers) // 15)
        shown = range(0, len(layers), step)
        panel.set_yticks(list(shown), [str(layers[i]) for i in shown])
        panel.set_xlabel("query head")
    panels[0].set_ylabel("layer")
    drawing.colorbar(image, ax=panels, label="tokens")
    note = "; heaviest tokens that hold so much of the attention mass, mean over steps and samples"
    return style.finish(drawing, rows, ["key"], note, legend="none")


def fidelity_step_overlap(frame: pd.DataFrame) -> Any:
    """Overlap with the step before: the 100 heaviest tokens, and what each method attends."""
    rows = one_budget(_measured(frame))
    means = _over_layers(rows, ("top_step", "own_step")).groupby(rows["method"]).mean()
    means = means.loc[style.ordered(means.index)]
    drawing, (axes,) = style.figure(2.4)
    place = np.arange(len(means))
    axes.bar(place, means["own_step"], 0.7, color=[style.color(method) for method in means.index])
    level = means["top_step"].mean()
    axes.axhline(level, color="black", ls="--", lw=0.8, label="100 heaviest tokens")
    axes.set_xticks(place, list(means.index), rotation=30, ha="right")
    axes.set(ylabel="overlap with the step before", ylim=(0, 1.02))
    return style.finish(drawing, rows, ["key"])


def fidelity_cluster_mass(frame: pd.DataFrame) -> Any:
    """Mass that a centroid stands for against the true mass of its cluster's tokens."""
    rows = _measured(frame)
    pairs = {
        str(method): np.array([pair for measured in group for pair in measured["pairs"]])
        for method, group in rows.groupby("method", sort=False)["fidelity"]
    }
    pairs = {method: found for method, found in pairs.items() if len(found)}
    require(pairs, "no method with estimates", COMMAND)
    drawing, (axes,) = style.figure(3.0)
    for method, found in pairs.items():
        look = {"s": 3, "alpha": 0.4, "color": style.color(method), "label": method}
        axes.scatter(*np.maximum(found, 1e-12).T, **look)
    low, high = axes.get_xlim()
    axes.plot([max(low, 1e-12), high], [max(low, 1e-12), high], color="black", linewidth=0.8)
    axes.set(xscale="log", yscale="log")
    axes.set(xlabel="true mass of a cluster", ylabel="estimated mass")
    return style.finish(drawing, rows, ["key"], legend="inside")


def fidelity_error(frame: pd.DataFrame) -> Any:
    """Relative output error by layer and head, a panel per method (its last cell)."""
    rows = _measured(frame)
    methods = style.by_method(rows[rows["method"] != "full"])
    require(methods, "only full attention was measured", COMMAND)
    width = max(style.ONE_COLUMN, 1.7 * len(methods))
    drawing, panels = style.figure(2.2, len(methods), width=width)
    for panel, (method, own) in zip(panels, methods.items(), strict=True):
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
    return style.finish(drawing, rows, ["key"], legend="none")


def fidelity_recall(frame: pd.DataFrame) -> Any:
    """Recall of attention mass by the share of tokens attended; dashed: best with as many.

    A line joins cells that differ in the budget alone.
    """
    rows = _measured(frame)
    rows = rows[rows["method"] != "full"]
    require(rows["key"].nunique() > 1, "needs two cells", f"{COMMAND} budget=1.8%,5%")
    means = _over_layers(rows, ("attended_frac", "recall", "oracle"))
    names = ["method", "protocol", "changed", "key"]
    settings = rows[names].fillna({"changed": ""})
    cells = means.join(settings).groupby(names).mean().dropna().sort_values("attended_frac")
    drawing, (axes,) = style.figure(2.6)
    for method in style.ordered(cells.index.unique("method")):
        look = style.look(method)
        for _, line in cells.loc[method].groupby(["protocol", "changed"]):
            percent = 100 * line["attended_frac"]
            axes.plot(percent, line["recall"], **look)
            axes.plot(percent, line["oracle"], "_--", color=look["color"], lw=0.8)
            look["label"] = None  # one entry of the legend per method
    axes.plot([], [], "_--", color="black", lw=0.8, label="largest possible")
    axes.set_xlim(left=0)
    axes.set(xlabel="tokens attended exactly (% of context)", ylabel="recall of attention mass")
    axes.set_ylim(0, 1.02)
    note = f", layers {layer_range(common_layers(rows))}"
    return style.finish(drawing, rows, ["key"], note, legend="inside")


def trace_methods(frame: pd.DataFrame) -> Any:
    """Attention mass lost, regret and output error of every method, by tokens attended.

    A line joins a method's budgets; each point is a mean over samples and layers.
    """
    rows = _measured(frame)
    rows = rows[rows["model"].str.startswith("trace of ")]
    require(rows["key"].nunique() > 1, "needs two cells of traces", TRACES)
    means = _over_layers(rows, ("attended_frac", "recall", "regret", "error"))
    means["lost"] = 1 - means["recall"]
    cells = means.groupby([rows["method"], rows["changed"].fillna(""), rows["key"]]).mean()
    cells = cells.dropna(subset=["lost"]).sort_values("attended_frac")
    drawing, panels = style.figure(3.4, 3)
    for i, method in enumerate(style.ordered(cells.index.unique("method"))):
        look = {**style.option_look(i), "ls": ("-", "--", ":")[i // 7 % 3], "lw": 1}
        for _, line in cells.loc[method].groupby("changed"):
            for panel, name in zip(panels, ("lost", "regret", "error"), strict=True):
                panel.plot(100 * line["attended_frac"], line[name], **look, label=method)
            method = None  # one entry of the legend per method
    for panel, text in zip(
        panels, ("attention mass lost", "regret", "relative output error"), strict=True
    ):
        panel.set(ylabel=text, xlabel="tokens attended exactly (%)", ylim=(0, None))
    note = f", layers {layer_range(common_layers(rows))}; regret: mass that the best choice of as "
    note += "many tokens would hold beyond the method's"
    return style.finish(drawing, rows, ["key"], note, columns=5)


def _measured(frame: pd.DataFrame) -> pd.DataFrame:
    """Answered rows with measured steps; ``fidelity`` holds what was measured."""
    require("fidelity" in frame, "no rows of measure=fidelity", COMMAND)
    rows = frame[(frame["status"] == OK) & (frame["fidelity.steps"] > 0)]
    require(len(rows), "no rows of measure=fidelity", COMMAND)
    return rows


def _over_layers(rows: pd.DataFrame, names: tuple[str, ...]) -> pd.DataFrame:
    """Means of measures over the layers that all methods leave sparse, a row per sample."""
    common = {rows["model"].iloc[0]: common_layers(rows)}  # a figure shows one model
    return pd.DataFrame({name: layer_means(rows, f"layer_mean.{name}", common) for name in names})


_DRAWN = (
    *(fidelity_mass_cdf, attention_tokens, fidelity_step_overlap, fidelity_cluster_mass),
    *(fidelity_error, fidelity_recall, trace_methods),
)
FIGURES = {draw.__name__: draw for draw in _DRAWN}
