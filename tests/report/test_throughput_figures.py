"""Figures of decoded tokens per second."""

from __future__ import annotations

import pytest

from retrobench.report.figures.cost import step_breakdown
from retrobench.report.figures.draw import load
from retrobench.report.figures.speed import throughput_by_batch
from retrobench.report.figures.throughput import buffer_ablation
from retrobench.report.tables.overview import COLUMNS
from retrobench.report.tables.timed import speed_matrix

ALL_DEFAULTS = {"labels": {"changed": ""}}


def test_an_update_aside_has_a_line_of_its_own(lab):
    arms = {"cache": "none"}, {"cache": "host"}, {"cache": "host", "async_update": True}
    for options in arms:
        for batch in (1, 2):
            lab.cell(**options, rows=[lab.row(batch=batch)], batch=batch)
    lab.cell(cache="host", page_tokens=4, rows=[lab.row(batch=2)], batch=2)
    lab.cell(cache="host", budget="1%", rows=[lab.row(batch=2, decode_s=9.0)], batch=2)
    (axes,) = buffer_ablation(load(lab.store)).axes
    host = axes.containers[1].lines[0].get_xydata()
    assert host[1].tolist() == [2, 20]  # two answers of ten tokens in a second
    assert [text.get_text() for text in axes.figure.legends[0].get_texts()] == [
        "cache=none", "cache=host", "cache=host, updated aside"
    ]  # fmt: skip


def timed(lab, step_s, batch, threads=1):
    speed = {f"step_{name}s": step_s for name in ("", "q1_", "q3_")} | {"threads": threads}
    speed |= {"tokens_per_s": batch / step_s, "read_bytes": 1.0, "read_gb_s": 1.0}
    row = lab.row("speed", index=batch, score=None, meta={"batch": batch, "shape": "s"})
    return {**row, "speed": {**speed, "ceiling_gb_s": 2.0, "output_error": None}}


def test_budgets_and_ways_of_timing_share_no_line(lab):
    for budget, step_s, threads in ((None, 0.2, 1), ("1%", 0.1, 1), (None, 0.05, 8)):
        rows = [timed(lab, step_s, batch, threads) for batch in (1, 2, 4)[: 2 + (step_s == 0.2)]]
        lab.cell("quest", benchmark="speed", budget=budget, rows=rows, n=threads, **ALL_DEFAULTS)
    drawing = throughput_by_batch(load(lab.store))
    (line,) = drawing.axes[0].containers
    assert line.lines[0].get_xydata().tolist() == [[1, 5], [2, 10], [4, 20]]


def test_full_attention_of_another_number_of_threads_is_no_measure(lab):
    for method, threads, step_s in (("full", 8, 0.01), ("full", 1, 0.4), ("quest", 1, 0.1)):
        rows = [timed(lab, step_s, 1, threads)]
        lab.cell(method, benchmark="speed", rows=rows, n=threads, **ALL_DEFAULTS)
    table = speed_matrix(lab.store.columns(COLUMNS)).set_index("method")
    assert table.loc["quest", "vs full"] == "4.00x"


def test_parts_of_a_step_are_those_of_one_batch_size(lab):
    for batch in (1, 4):
        lab.cell("full", batch=batch, rows=[lab.row(spans={"attend": batch / 10})])
    (bar,) = step_breakdown(load(lab.store)).axes[0].patches
    assert bar.get_width() == pytest.approx(10)  # ms: 0.1 s in ten steps
