"""A task that full attention fails counts in no average and no comparison, whatever the model."""

from __future__ import annotations

import pandas as pd
import pytest

from retrobench.report.checks.significance import full_comparisons, significance
from retrobench.report.headroom import lacks_headroom, load
from retrobench.report.tables.overview import COLUMNS
from retrobench.report.tables.scores import caption, score_matrix

EASY, HARD = "niah_single_2", "vt"


def cells(lab, full=None, quest=(1.0, 1.0), count=8, methods=("full", "quest"), **labels):
    """Cells of full attention and of Quest on an easy and a hard task: mean scores by method."""
    for method, scores in zip(methods, (full, quest), strict=True):
        if scores is not None:
            rows = [
                lab.row(task, index=i, score=score)
                for task, score in zip((EASY, HARD), scores, strict=True)
                for i in range(count)
            ]
            lab.cell(method, rows=rows, **labels)
    return load(lab.store, COLUMNS, None)


@pytest.mark.parametrize(
    ("score", "name", "average", "points", "losses"),
    [
        (0.0, "vt*@4K", "50.0", "-50.0", 8),
        (0.19, "vt*@4K", "50.0", "-50.0", 8),
        (0.2, "vt@4K", "25.0", "-35.0", 16),
        (1.0, "vt@4K", "25.0", "-75.0", 16),
    ],
)
def test_full_attention_decides_which_columns_count(lab, score, name, average, points, losses):
    frame = cells(lab, full=(1.0, score), quest=(0.5, 0.0))
    table = score_matrix(frame).set_index("method")
    assert {name, "s2@4K"} < set(table)
    assert table.loc["quest", "avg"] == average
    (line,) = full_comparisons(frame)
    assert f"{points} points" in line and f"{losses} losses" in line
    assert ("no headroom: full attention scores below 20" in caption(frame)) == ("*" in name)


def test_a_failure_where_there_is_no_headroom_spoils_no_average(lab):
    lab.cell("full", rows=[lab.row(EASY), lab.row(HARD, score=0.0)])
    lab.cell("quest", rows=[lab.row(EASY), lab.row(HARD, score=None, status="oom")])
    table = score_matrix(load(lab.store, COLUMNS, None)).set_index("method")
    assert table.loc["quest", ["vt*@4K", "avg"]].tolist() == ["oom 1/1", "100.0"]


def test_nothing_with_headroom_means_no_average_and_no_verdict(lab):
    frame = cells(lab, full=(0.0, 0.1))
    assert list(score_matrix(frame)["avg"]) == ["-", "-"]
    assert significance(frame) == []


def test_without_full_attention_the_headroom_is_called_unknown(lab):
    frame = cells(lab, quest=(1.0, 0.0))
    assert list(score_matrix(frame)["avg"]) == ["50.0"]
    assert "no full-attention reference, headroom unknown: s2@4K, vt@4K" in caption(frame)
    failed = [lab.row(task, score=None, status="oom") for task in (EASY, HARD)]
    lab.cell("full", rows=failed)
    assert "no full-attention reference" in caption(load(lab.store, COLUMNS, None))


@pytest.mark.parametrize(("other", "marked"), [({}, True), ({"model": "other"}, False)])
def test_full_attention_of_another_cell_counts_where_the_prompts_are_the_same(lab, other, marked):
    cells(lab, full=(1.0, 0.0), quest=None, **other)
    key = lab.cell("quest", rows=[lab.row(EASY), lab.row(HARD)])
    frame = load(lab.store, COLUMNS, [key])
    assert set(frame["method"]) == {"quest"}
    assert lacks_headroom(frame).tolist() == [False, marked]


def test_full_attention_on_other_prompts_is_no_reference(lab):
    lab.cell("full", rows=[{**lab.row(HARD, score=0.0), "prompt_hash": "another"}])
    key = lab.cell("quest", rows=[lab.row(HARD)])
    assert not lacks_headroom(load(lab.store, COLUMNS, [key])).any()


@pytest.mark.parametrize(
    ("benchmark", "task", "score", "marked"),
    [
        ("longbench_v2", "longbench_v2", 0.34, True),
        ("longbench_v2", "longbench_v2", 0.35, False),
        ("reasoning", "gpqa", 0.3, True),
        ("reasoning", "aime24", 0.3, False),
        ("no_longer_there", "x", 0.3, False),
    ],
)
def test_a_task_that_can_be_guessed_needs_ten_points_above_chance(benchmark, task, score, marked):
    row = {"model": "m", "benchmark": benchmark, "protocol": "query_aware", "task": task}
    row |= {"length": 0, "method": "full", "status": "ok", "score": score}
    assert lacks_headroom(pd.DataFrame([row])).tolist() == [marked]


def test_figures_mark_what_has_no_headroom_or_leave_it_out(lab):
    from retrobench.report.figures.accuracy import ruler_by_length, ruler_scores, ruler_tasks
    from retrobench.report.figures.draw import load as load_figures

    for method, hard in (("full", 0.1), ("quest", 0.9)):
        rows = [
            lab.row(task, length, i, score)
            for task, score in ((EASY, 1.0), (HARD, hard))
            for length in (2048, 4096)
            for i in range(3)
        ]
        lab.cell(method, rows=rows)
    frame = load_figures(lab.store)
    (axes,) = ruler_scores(frame).axes
    names = [text.get_text() for text in axes.get_xticklabels()]
    assert [name.endswith("*") for name in names] == [False, True]
    panels = ruler_tasks(frame).axes
    assert [t.get_text() for t in panels[0].texts] == ["100", "100", "10*", "10*"]
    drawing = ruler_by_length(frame)
    lines = [drawn.lines[0] for drawn in drawing.axes[0].containers]
    assert [list(line.get_ydata()) for line in lines] == [[100, 100]] * 2
    note = " ".join(drawing.get_supxlabel().split())
    assert "left out, no headroom" in note and note.endswith(HARD)
