"""Bars of many methods cannot be told apart: the figure is a heat map then."""

import pytest

pytest.importorskip("matplotlib")

from retrobench.report.figures.accuracy import ruler_scores
from retrobench.report.figures.draw import load

METHODS = "full retroinfer quest infinigen oracle_topk streaming random snapkv sparf".split()


@pytest.mark.parametrize("count", [8, 9])
def test_many_methods_make_a_heat_map(lab, count):
    for place, method in enumerate(METHODS[:count]):
        rows = [lab.row("niah_single_1", 4096, i, 1 - place / 10) for i in range(2)]
        lab.cell(method, rows=[*rows, lab.row("vt", 4096, 0, 0.1)])
    axes = ruler_scores(load(lab.store)).axes[0]
    assert bool(axes.images) == (count == 9)
    if axes.images:
        assert {text.get_text() for text in axes.get_yticklabels()} == set(METHODS)
        assert axes.images[0].get_array()[1].tolist() == [90, 10]
        assert [text.get_text() for text in axes.get_xticklabels()] == ["single 1", "vt*"]
