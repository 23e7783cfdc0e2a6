"""Figures of studies: methods on traces, and kinds of prefill."""

from __future__ import annotations

import pytest

pytest.importorskip("matplotlib")

from retrobench.report.figures import fidelity as fidelity_plots
from retrobench.report.figures.draw import FIGURES, load


def test_methods_on_traces_are_compared_by_what_they_lose(lab):
    def measured(share):
        by_layer = {"attended_frac": [share], "recall": [0.7], "regret": [0.1], "error": [0.2]}
        return {"steps": 3, "layers": [4], "sparse_layers": [4], "layer_mean": by_layer}

    for budget, share in (("5%", 0.05), ("10%", 0.1)):
        for method in ("quest", "random"):
            rows = [lab.row(fidelity=measured(share))]
            lab.cell(method, budget=budget, rows=rows, model="trace of made_up")
    drawing = fidelity_plots.trace_methods(load(lab.store))
    lost, regret, error = drawing.axes
    assert [line.get_label() for line in lost.lines] == ["quest", "random"]
    assert list(lost.lines[0].get_xdata()) == pytest.approx([5, 10])
    values = [panel.lines[0].get_ydata()[0] for panel in (lost, regret, error)]
    assert values == pytest.approx([0.3, 0.1, 0.2])


def test_two_settings_of_one_kind_of_prefill_are_two_bars(lab):
    lab.cell("full", rows=[lab.row(index=0)])
    for stride, score in ((4, 0.5), (8, 0.25)):
        changed = {"changed": f"prefill=xattention prefill.stride={stride}"}
        lab.cell("full", rows=[lab.row(index=0, score=score)], kind=stride, labels=changed)
    (panel,) = FIGURES["sparse_prefill"](load(lab.store)).axes
    names = [text.get_text() for text in panel.get_xticklabels()]
    assert names == ["exact", "xattention\nstride=4", "xattention\nstride=8"]
    assert [bar.get_height() for bar in panel.patches] == pytest.approx([100, 50, 25])


def test_kinds_of_prefill_stand_side_by_side(lab):
    for method in ("full", "retroinfer"):
        lab.cell(method, rows=[lab.row(index=i) for i in range(4)])
        rows = [lab.row(index=i, score=i / 4, prefill_computed_frac=0.4) for i in range(4)]
        lab.cell(
            method, rows=rows, kind=1, labels={"changed": "prefill=xattention prefill.stride=4"}
        )
        # another option, budget, batch size or sample is another comparison
        worse = [lab.row(index=i, score=0.0) for i in range(4)]
        for more in ({"pages": 4}, {"budget": "1%"}, {"batch": 2}):
            lab.cell(method, rows=worse, **more)
        lab.cell(method, rows=[lab.row(index=9, score=0.0)], seed=9, labels={"changed": ""})
    drawing = FIGURES["sparse_prefill"](load(lab.store))
    for panel in drawing.axes:
        assert [text.get_text() for text in panel.get_xticklabels()] == ["exact", "xattention"]
        assert [bar.get_height() for bar in panel.patches] == pytest.approx([100, 37.5])
        assert "40% computed" in [text.get_text() for text in panel.texts]
