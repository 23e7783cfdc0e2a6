"""Figures of ``task=serve``: replays. And the flash pages that a sparse step touches."""

from typing import Any

import numpy as np
import pandas as pd

from retrobench.report.benchmarks import is_replayed
from retrobench.report.figures import parts, style
from retrobench.report.rows import default_options, one_budget, require
from retrobench.store.row_file import OK

COMMAND = "python run.py -m experiment=serving"
REPLAYED = "replay: simulated queue, nothing was served; {shape}, {requests}"
LATENCIES = {"ttft": ("time to first token (s)", 1e-3), "tpot": ("time per token (ms)", 1.0)}


def serving(frame: pd.DataFrame) -> Any:
    """Median (line) and 90th percentile (dashes) of TTFT and TPOT against the request rate.

    A column of panels per machine, a line per method; dotted: what a good request stays below.
    """
    rows = _replayed(frame)
    rows = rows[rows["sample"].str.startswith("rate-")]
    require(rows["replay.request_rate"].nunique() > 1, "needs two request rates", COMMAND)
    machines = sorted(rows["hardware"].unique())
    width = style.ONE_COLUMN if len(machines) == 1 else style.TWO_COLUMNS
    drawing, panels = style.figure(4.2, 2 * len(machines), rows=2, width=width)
    for column, machine in enumerate(machines):
        for row, (name, (label, scale)) in enumerate(LATENCIES.items()):
            panel = panels[row * len(machines) + column]
            _latency_panel(panel, rows[rows["hardware"] == machine], name, scale)
            panel.set_ylabel(label if column == 0 else "")
            panel.set_xlabel("requests/s" if row else "")
        panels[column].set_title(machine)
    lines = "line: median, dashes: 90th percentile, dotted: the limit of a good request"
    return style.finish(drawing, rows, None, _note(rows, lines))


def _latency_panel(panel: Any, rows: pd.DataFrame, name: str, scale: float) -> None:
    for method, own in style.by_method(rows).items():
        own = own.sort_values("replay.request_rate")
        rate, look = own["replay.request_rate"], style.look(method)
        panel.plot(rate, scale * own[f"replay.p50_{name}_ms"], linewidth=1.2, **look)
        high = scale * own[f"replay.p90_{name}_ms"]
        panel.plot(rate, high, linestyle="--", linewidth=0.8, color=look["color"])
    limit = 1000 * scale * rows[f"replay.slo_{name}_s"].iloc[0]
    panel.axhline(limit, linestyle=":", linewidth=0.8, color="#777777")
    panel.set(xscale="log", yscale="log")
    panel.xaxis.minorticks_off()  # panels are too narrow for more than decades


def goodput(frame: pd.DataFrame) -> Any:
    """The largest rate with enough good requests: bars by machine and method."""
    rows = _largest(frame)
    reached = (rows["replay.request_rate"] > 0).any()
    require(reached, f"no rate had enough good requests ({_objectives(rows)})", COMMAND)
    drawing, (axes,) = style.figure(2.6, width=style.TWO_COLUMNS)
    _bars(axes, rows, "replay.request_rate", _rate_text)
    share = f"{rows['replay.good_share'].iloc[0]:.0%} of the requests good"
    axes.set(ylabel="requests per second", title=f"largest rate with {share}")
    more = "≥: at higher rates all requests come at once"
    return style.finish(drawing, rows, None, _note(rows, f"{_objectives(rows)}; {more}"))


def serving_cost(frame: pd.DataFrame) -> Any:
    """Price of a million output tokens at the largest rate, bars by machine and method."""
    rows = _largest(frame)
    rows = rows[rows["replay.usd_per_million_tokens"] > 0]
    require(len(rows), "needs hardware.usd_per_hour", COMMAND)
    drawing, (axes,) = style.figure(2.6, width=style.TWO_COLUMNS)
    _bars(axes, rows, "replay.usd_per_million_tokens", _price_text)
    axes.set(ylabel="USD per million tokens")
    note = f"{_objectives(rows)}; prices are inputs (hardware.usd_per_hour)"
    return style.finish(drawing, rows, None, _note(rows, note))


def _bars(axes: Any, rows: pd.DataFrame, column: str, text: Any) -> None:
    """A group of bars per machine, on a log scale; a machine that reaches nothing says so."""
    machines, methods = sorted(rows["hardware"].unique()), style.by_method(rows)
    for index, (method, own) in enumerate(methods.items()):
        slot = index, len(methods)
        axes.bar([0], [np.nan], color=style.color(method), label=method)
        for x, machine in enumerate(machines):
            for _, row in own[own["hardware"] == machine].iterrows():
                place, value = parts.slot_place(x, slot), row[column]
                if value > 0:
                    axes.bar(place, value, parts.slot_width(slot), color=style.color(method))
                look = {"ha": "center", "va": "bottom", "fontsize": style.SMALL}
                axes.text(place, value or axes.get_ylim()[0], text(row), **look)
    parts.group_axis(axes, machines)
    axes.set_yscale("log")
    axes.margins(y=0.15)


def _rate_text(row: pd.Series) -> str:
    bound = "≥" if row.get("replay.bound") == "requests" else ""
    return f"{bound}{row['replay.request_rate']:.2g}" if row["replay.request_rate"] else "none"


def _price_text(row: pd.Series) -> str:
    usd = row["replay.usd_per_million_tokens"]
    return f"{usd:.0f}" if usd >= 100 else f"{usd:.2g}"


def flash_bytes(frame: pd.DataFrame) -> Any:
    """Share of K and V that a step reads from flash, and that passes the filter, by sparsity."""
    command = "python run.py -m experiment=flash_bytes"
    require("method_stats.flash_read_frac" in frame, "no rows that count flash pages", command)
    rows = frame[(frame["status"] == OK) & frame["method_stats.flash_read_frac"].notna()]
    require(rows["method.ratio"].nunique() > 1, "needs two values of method.ratio", command)
    contexts = sorted(rows["length"].unique())
    drawing, panels = style.figure(2.6, len(contexts))
    for panel, context in zip(panels, contexts, strict=True):
        own = rows[rows["length"] == context].sort_values("method.ratio")
        asked = 1 / own["method.ratio"]
        read = own[["live.bytes_per_step.kv", "live.bytes_per_step.index"]].sum(axis=1)
        dense = read / own["method_stats.flash_read_bytes"] * own["method_stats.flash_read_frac"]
        lines = {"pages read": own["method_stats.flash_read_frac"], "after the filter": dense}
        for index, (label, values) in enumerate(lines.items()):
            panel.plot(asked, values, label=label, **style.option_look(index))
        panel.plot(asked, asked, color="#777777", linestyle=":", linewidth=0.8, label="asked for")
        panel.set(xscale="log", yscale="log", xlabel="1 / compression ratio")
        panel.xaxis.minorticks_off()
        panel.set_title(f"{context:g} tokens")
    panels[0].set_ylabel("share of all K and V")
    model = rows["model"].iloc[0]
    return style.finish(drawing, rows, None, f"{model}; counted on synthetic keys, 4 KiB pages")


def _replayed(frame: pd.DataFrame) -> pd.DataFrame:
    """Rows of methods' default options, of one budget, one kind of requests and one aim."""
    rows = frame[is_replayed(frame)]
    rows = one_budget(rows[(rows["status"] == OK) & default_options(rows)])
    require(len(rows), "no rows of task=serve", COMMAND)
    for name in ("requests", "slo_ttft_s", "slo_tpot_s", "good_share"):
        rows = rows[rows[f"replay.{name}"] == rows[f"replay.{name}"].mode()[0]]
    return rows.drop_duplicates(["hardware", "method", "sample"], keep="last")


def _largest(frame: pd.DataFrame) -> pd.DataFrame:
    rows = _replayed(frame)
    rows = rows[rows["sample"] == "largest"]
    require(len(rows), "needs task.largest_rate", COMMAND)
    return rows


def _objectives(rows: pd.DataFrame) -> str:
    first = rows.iloc[0]
    return (
        f"good: first token within {first['replay.slo_ttft_s']:g} s, "
        f"{1000 * first['replay.slo_tpot_s']:g} ms per token after it"
    )


def _note(rows: pd.DataFrame, more: str) -> str:
    shape, requests = rows["model"].iloc[0], rows["replay.requests"].iloc[0]
    return f"{REPLAYED.format(shape=shape, requests=requests)}; {more}"


FIGURES = {draw.__name__: draw for draw in (serving, goodput, serving_cost, flash_bytes)}
