"""Figures of decoded tokens per second."""

from __future__ import annotations

from retrobench.report.figures.draw import load
from retrobench.report.figures.throughput import buffer_ablation


def test_an_update_aside_has_a_line_of_its_own(lab):
    arms = {"cache": "none"}, {"cache": "host"}, {"cache": "host", "async_update": True}
    for options in arms:
        for batch in (1, 2):
            lab.cell(**options, rows=[lab.row(batch=batch)], batch=batch)
    lab.cell(cache="host", page_tokens=4, rows=[lab.row(batch=2)], batch=2)
    (axes,) = buffer_ablation(load(lab.store)).axes
    assert [text.get_text() for text in axes.figure.legends[0].get_texts()] == [
        "cache=none", "cache=host", "cache=host, updated aside"
    ]  # fmt: skip
