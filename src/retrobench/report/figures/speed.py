"""Figures of ``task=speed``."""

from typing import Any

import numpy as np
import pandas as pd

from retrobench.report.benchmarks import is_timed
from retrobench.report.figures import parts, style
from retrobench.report.rows import default_options, one_budget, require, token_count
from retrobench.report.tables.timed import ALIKE
from retrobench.store.row_file import OK


def throughput(frame: pd.DataFrame) -> Any:
    """Decode rate and step time by context (paper Fig. 12), at each method's best batch size."""
    rows, good = _speed(frame, "python run.py task=speed method=full,retroinfer,quest -m", 1)
    best = good.loc[good.groupby(["method", "length"])["speed.tokens_per_s"].idxmax()]
    best = best.sort_values("length")
    drawing, (rates, times) = style.figure(2.6, 2)
    for order, method in enumerate(style.by_method(rows)):
        own, look = best[best["method"] == method], style.look(method)
        rates.plot(own["length"], own["speed.tokens_per_s"], **look)
        step_ms = 1000 * own[["speed.step_s", "speed.step_q1_s", "speed.step_q3_s"]]
        parts.interval_line(times, np.column_stack([own["length"], step_ms]), **look)
        failed = _failed(rows, own, method, "length")
        for panel in (rates, times):
            parts.out_of_memory(panel, failed, look["color"], order)
    for panel, label in ((rates, "tokens per second"), (times, "ms per step")):
        parts.token_axis(panel, rows["length"])
        panel.set_yscale("log")
        panel.set_ylabel(label)
    times.set_title("median and quartiles")
    rates.set_title(_where(good))
    rates.legend()
    synthetic = (good["meta.shape"] != "model").all()
    note = "synthetic clustered keys and values" if synthetic else "random token ids"
    shown = pd.concat([best, rows[rows["status"] == "oom"]])
    return style.finish(drawing, shown, None, note, legend="none")


def throughput_by_batch(frame: pd.DataFrame) -> Any:
    """Tokens per second against the batch, a panel per context (paper Fig. 13); OOM is drawn."""
    rows, good = _speed(frame, "python run.py -m experiment=throughput_by_batch", 2)
    good = good.sort_values("meta.batch")
    contexts = sorted(good["length"].unique())
    drawing, panels = style.figure(2.6, len(contexts))
    for panel, context in zip(panels, contexts, strict=True):
        here = rows[rows["length"] == context]
        for order, method in enumerate(style.by_method(here)):
            own = good[(good["length"] == context) & (good["method"] == method)]
            batch, rate = own["meta.batch"], own["speed.tokens_per_s"]
            slow, fast = batch / own["speed.step_q3_s"], batch / own["speed.step_q1_s"]
            points = np.column_stack([batch, rate, slow, fast])
            parts.interval_line(panel, points, **style.look(method))
            failed = _failed(here, own, method, "meta.batch")
            parts.out_of_memory(panel, failed, style.color(method), order)
        parts.batch_axis(panel, here["meta.batch"])
        panel.set_title(f"{token_count(context)} tokens")
    return style.finish(drawing, rows, None, f"{_where(good)}; median, quartiles")


def latency_vs_load(frame: pd.DataFrame) -> Any:
    """Seconds until a request is answered against requests served per second (paper Fig. 17).

    A batch is served as a whole, so its requests share one latency: prefill, index build and every
    decode step of the model. Each batch is a point; a panel per load (tokens in, tokens out).
    """
    if "meta.shape" in frame:
        frame = frame[frame["meta.shape"] == "model"]
    rows, good = _speed(frame, "python run.py -m experiment=latency_vs_load", 2)
    good = good.assign(latency_s=good[["prefill_s", "seal_s", "decode_s"]].sum(axis=1))
    good = good.assign(rate=good["meta.batch"] / good["latency_s"]).sort_values("meta.batch")
    loads = sorted(set(zip(good["length"], good["decode_steps"], strict=True)), reverse=True)
    drawing, panels = style.figure(2.6, len(loads))
    for panel, (tokens_in, tokens_out) in zip(panels, loads, strict=True):
        here = good[(good["length"] == tokens_in) & (good["decode_steps"] == tokens_out)]
        _load_panel(panel, here, rows[rows["length"] == tokens_in])
        panel.set_title(f"{token_count(tokens_in)} tokens in, {token_count(tokens_out)} out")
    note = f"{_where(good)}; numbers: batch; one run of each, random token ids"
    return style.finish(drawing, rows, None, note)


def _load_panel(panel: Any, good: pd.DataFrame, rows: pd.DataFrame) -> None:
    """A line per method through its batches, and the batches from which memory ran out."""
    failures = []
    for method in style.by_method(rows):
        own, look = good[good["method"] == method], style.look(method)
        panel.plot(own["rate"], own["latency_s"], linewidth=1.2, **look)
        for point in own[["rate", "latency_s", "meta.batch"]].to_numpy():
            text = f"{point[2]:g}"
            parts.beside_point(panel, text, point[:2], color=look["color"], xytext=(3, 3))
        if failed := _failed(rows, own, method, "meta.batch"):
            failures.append(f"{method}: OOM from batch {min(failed):g}")
    where = {"transform": panel.transAxes, "ha": "right", "va": "bottom", "fontsize": style.SMALL}
    panel.text(0.99, 0.02, "\n".join(failures), **where)
    panel.set_ylim(bottom=0)
    panel.set_xlim(left=0)
    panel.margins(0.08)
    panel.set(xlabel="requests per second", ylabel="latency (s)")


def _speed(
    frame: pd.DataFrame, command: str, min_batches: int
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Rows of methods' default options, of one budget and one machine; those with an answer."""
    rows = frame[is_timed(frame)]
    good = rows[rows["status"] == OK]
    enough = len(good) and good["meta.batch"].nunique() >= min_batches
    need = "rows" if min_batches == 1 else f"{min_batches} batch sizes"
    require(enough, f"needs {need} of task=speed", command)
    rows = one_budget(rows[default_options(rows)])
    require((rows["status"] == OK).any(), "no rows of methods with default options", command)
    for name in ALIKE:  # the value that most answered rows have
        if name in rows and len(usual := rows.loc[rows["status"] == OK, name].mode()):
            rows = rows[rows[name].eq(usual[0]) | rows[name].isna()]
    return rows, rows[rows["status"] == OK]


def _failed(rows: pd.DataFrame, own: pd.DataFrame, method: str, by: str) -> set[float]:
    """Values of ``by`` at which a method ran out of memory and has no answer (``own``)."""
    failed = rows.loc[(rows["method"] == method) & (rows["status"] == "oom"), by]
    return set(failed) - set(own[by])


def _where(rows: pd.DataFrame) -> str:
    threads = rows["speed.threads"].iloc[0]
    return f"{rows['model'].iloc[0]}, {threads:.0f} thread{'s' if threads > 1 else ''}"


FIGURES = {draw.__name__: draw for draw in (throughput, throughput_by_batch, latency_vs_load)}
