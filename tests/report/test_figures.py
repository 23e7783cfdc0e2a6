"""Figures come from rows, name their cells, refuse what they cannot show, and age visibly."""

from __future__ import annotations

import io
import json
import shutil

import pytest

pytest.importorskip("matplotlib")

from retrobench.cli import console
from retrobench.report.figures import fidelity as fidelity_plots
from retrobench.report.figures import search as search_plots
from retrobench.report.figures import serving as serving_plots
from retrobench.report.figures import speed as speed_plots
from retrobench.report.figures.draw import FIGURES, check, draw, figure_cells, load


def test_recall_joins_cells_of_one_method_only_where_the_budget_alone_differs(lab):
    def measured(share):
        by_layer = {"attended_frac": [share], "recall": [0.5], "oracle": [0.9]}
        return {"steps": 3, "layers": [0], "sparse_layers": [0], "layer_mean": by_layer}

    for budget, share in (("2%", 0.02), ("5%", 0.05)):
        lab.cell("quest", budget=budget, rows=[lab.row(fidelity=measured(share))])
    lab.cell("quest", page_size=8, rows=[lab.row(fidelity=measured(0.03))])
    (axes,) = fidelity_plots.fidelity_recall(load(lab.store)).axes
    assert [len(line.get_xdata()) for line in axes.lines] == [2, 2, 1, 1, 0]


def test_tokens_that_hold_the_mass_are_shown_by_layer_and_head(lab):
    def measured(scale):
        heads = {f"tokens_{mass}": [[scale * mass, 1], [1, 1]] for mass in (50, 90, 99)}
        return {"steps": 2, "layers": [0, 3], "sparse_layers": [], "by_layer_head": heads}

    for scale in (1, 3):
        lab.cell("full", budget=f"{scale}%", rows=[lab.row(fidelity=measured(scale))])
    drawing = fidelity_plots.attention_tokens(load(lab.store))
    grids = [axes.images[0].get_array() for axes in drawing.axes[:3]]
    assert [grid[0][0] for grid in grids] == [100, 180, 198] and grids[0][1][0] == 1
    drawing.canvas.draw()
    ticks = [label.get_text() for label in drawing.axes[-1].get_yticklabels()]
    assert "100" in ticks and not any("$" in text for text in ticks)


def searched(recall, controls=()):
    """What measure=search writes, for two efforts."""
    curve = {"effort": [100, 150], "scanned": [0.02, 0.1], "recall": [recall, 0.97]}
    curve |= {"recall_5": recall + 0.01, "scanned_95": 0.09}
    of = {"queries": curve, "keys": {**curve, "scanned_95": None}}
    distance = {"percent": [0, 50, 100], "queries": [9.0, 20, 31], "keys": [2.0, 3, 4]}
    more = {"controls": {name: of for name in controls}, "distance": distance}
    return {"keys": 5000, "build_s": 2.0, "layers": [0], "of": of, **more}


def test_searches_are_drawn_with_their_controls(lab):
    twice = [lab.row(index=i, score=None, search=searched(0.9 - i / 2)) for i in range(2)]
    roar = lab.cell("retrieval_attention", rows=twice)
    ivf = [lab.row(score=None, search=searched(0.5, ["faiss IVF"]))]
    ivf = lab.cell("retrieval_attention", index="ivf", rows=ivf)
    lab.cell("quest", rows=[lab.row()])
    drawing = search_plots.ann_recall(load(lab.store))
    left, right, distances = drawing.axes
    shown = {line.get_label(): list(line.get_ydata()) for line in left.lines[:3]}
    assert shown == {"roar": [0.9, 0.97], "ivf": [0.5, 0.97], "faiss IVF": [0.5, 0.97]}
    assert list(left.lines[0].get_xdata()) == [2, 10] and len(right.lines) == 5
    assert [line.get_label() for line in distances.lines] == ["keys", "queries"]
    assert set(drawing.retrobench_cells) == {roar, ivf}
    assert "1 sample per point" in drawing._supxlabel.get_text()


def everything(lab):
    """Rows for every figure."""
    made = {"recall_100": 0.8, "recall": 0.9}
    fidelity = {"steps": 5, "mean": made}
    options = {
        "tokens_per_cluster": (8, 16),
        "segment_tokens": (512, 1024),
        "retrieval_frac": (0.01, 0.018),
        "estimation_frac": (0.0, 0.232),
        "final_assign": ("global", "segment"),
        "cache_frac": (0.05, 0.1),
        "page_tokens": (4, 8),
        "eviction": ("lru", "fifo"),
    }
    defaults = {"sink_tokens": 4, "local_tokens": 64, "kmeans_iterations": 10}
    for name, values in options.items():
        for value in values:
            lab.cell(**{name: value}, rows=lab.rows(hit=0.8, fidelity=fidelity))
    for sinks in (0, 4):
        for local in (1, 64):
            lab.cell(sink_tokens=sinks, local_tokens=local, rows=lab.rows())
        for value in (1, 10):
            assign = "global" if sinks else "segment"
            lab.cell(final_assign=assign, kmeans_iterations=value, rows=lab.rows())
    for cache in ("none", "host"):
        timed = [lab.row(spans={"attend": 0.1}, batch=2)]
        lab.cell(cache=cache, rows=timed, batch=2)
        lab.cell(cache=cache, rows=[lab.row(status="oom", score=None)], batch=4)
    lab.cell(cache="host", async_update=True, rows=[lab.row(batch=2)], batch=2)
    lab.cell(batch=2, rows=[lab.row(batch=2)])
    for method in ("full", "retroinfer", "quest"):
        spans = {"select": 0.1, "attend": 0.2}
        lab.cell(method, rows=lab.rows((2048, 4096), spans=spans))
        lab.cell(method, budget="5%", rows=lab.rows(mib=2.0))
        lab.cell(method, budget="10%", rows=lab.rows(mib=3.0))
        grid = [
            lab.row("niah", length, depth, meta={"depth": depth})
            for length in (1024, 2048)
            for depth in (0, 50, 100)
        ]
        lab.cell(method, benchmark="niah", rows=grid)
        sets = [lab.row(name, 0, 0) for name in ("qasper", "hotpotqa", "lcc")]
        lab.cell(method, benchmark="longbench", rows=sets)
    return defaults


@pytest.mark.slow
def test_every_figure_is_drawn_and_names_its_own_cells(lab, tmp_path):
    everything(lab)
    # these have tests of their own
    own = (fidelity_plots, search_plots, serving_plots, speed_plots)
    names = set(FIGURES) - {name for plots in own for name in plots.FIGURES} - {"sparse_prefill"}
    drawn = draw(lab.store, tmp_path / "f", sorted(names))
    results = {name: (path, why) for name, path, why in drawn}
    assert {name: why for name, (path, why) in results.items() if path is None} == {}
    assert set(results) == names
    for name in ("niah_grid", "cluster_count"):
        for suffix in (".png", ".pdf"):
            cells = figure_cells(tmp_path / "f" / f"{name}{suffix}")
            assert len(cells) == (3 if name == "niah_grid" else 2)


def texts(drawing):
    return [text.get_text() for axes in drawing.axes for text in axes.texts]


def test_what_ran_out_of_memory_or_was_refused_is_drawn_as_such(lab, tmp_path):
    from retrobench.report.figures.cost import prefill_breakdown
    from retrobench.report.figures.draw import load
    from retrobench.report.figures.throughput import max_throughput_by_task

    lab.cell(rows=lab.rows((4096,)))
    lab.cell("quest", rows=lab.rows((2048, 4096)))
    lab.cell(rows=[lab.row(batch=2)], batch=2)
    failed = lab.cell("full", rows=[lab.row(status="oom", score=None)], batch=2)
    lab.refuse("full", length=8192, tasks=["niah_single_2"])
    lab.refuse("infinigen", length=8192, tasks=["niah_single_2"], reason="error")
    frame = load(lab.store)
    assert set(frame.loc[frame["sample"] == "refused", "method"]) == {"full"}
    assert texts(prefill_breakdown(frame)).count("OOM") == 1
    assert texts(max_throughput_by_task(frame[frame["length"] == 4096])) == ["OOM", "2", *"111"]
    draw(lab.store, tmp_path, ["prefill_breakdown", "max_throughput_by_task"])
    paths = [tmp_path / f"{name}.pdf" for name in ("prefill_breakdown", "max_throughput_by_task")]
    assert check(lab.store, paths) == []
    assert failed in figure_cells(paths[1])


def test_models_are_drawn_apart(lab, tmp_path):
    keys = {m: lab.cell("full", model=m, rows=lab.rows(count=1)) for m in ("one", "org/two")}
    drawn = draw(lab.store, tmp_path, ["ruler_scores", "niah_grid"])
    names = {name: path for name, path, _ in drawn}
    assert set(names) == {"ruler_scores_one", "ruler_scores_org-two", "niah_grid"}
    assert names["niah_grid"] is None
    for name, key in zip(("one", "org-two"), keys.values(), strict=True):
        assert list(figure_cells(tmp_path / f"ruler_scores_{name}.png")) == [key]


def test_without_rows_each_figure_says_which_command_makes_them(lab, tmp_path):
    lab.cell("full", rows=lab.rows(count=1))
    missing = {name: why for name, path, why in draw(lab.store, tmp_path) if path is None}
    assert "ruler_scores" not in missing
    assert all("python run.py" in why for why in missing.values())
    assert "experiment=cluster_count" in missing["cluster_count"]


def test_an_ablation_shows_shared_samples_only(lab, tmp_path):
    lab.cell(tokens_per_cluster=8, rows=lab.rows(count=4))
    extra = lab.row(index=9, score=0.0)
    lab.cell(tokens_per_cluster=16, rows=[*lab.rows(count=2), extra])
    frame = lab.store.columns()
    from retrobench.report.figures.ablation import ABLATIONS, select

    rows = select(frame, ABLATIONS[0])
    assert rows["sample"].nunique() == 4 and (rows["score"] == 1).all()


def test_check_finds_missing_changed_failed_and_stale_rows(lab, tmp_path):
    key = lab.cell("full", rows=lab.rows())
    draw(lab.store, tmp_path / "f", ["ruler_scores"])
    path = tmp_path / "f" / "ruler_scores.pdf"
    assert check(lab.store, [path]) == []
    lab.cell("full", rows=[lab.row(status="oom", score=None), lab.row(index=1, code="old")])
    words = " ".join(check(lab.store, [path]))
    assert "changed" in words and "1 rows are oom" in words and "stale" in words
    shutil.rmtree(lab.store.root / key)
    assert "missing" in check(lab.store, [path])[0]


@pytest.mark.parametrize("command", ["sources", "trace"])
def test_the_sources_of_a_figure_from_the_command_line(lab, tmp_path, capsys, command):
    key = lab.cell("full", rows=lab.rows())
    draw(lab.store, tmp_path, ["ruler_scores"])
    where = ["--results", str(lab.store.root)]
    assert console.main([command, str(tmp_path / "ruler_scores.pdf"), *where]) == 0
    assert f"{key} made_up full" in capsys.readouterr().out


@pytest.mark.parametrize("command", ["diff", "why"])
def test_the_difference_of_two_cells_from_the_command_line(lab, capsys, command):
    keys = [lab.cell(page_tokens=number, rows=lab.rows()) for number in (4, 8)]
    assert console.main([command, *keys, "--results", str(lab.store.root)]) == 0
    assert "page_tokens" in capsys.readouterr().out


def test_effects_tell_main_effects_from_interactions(lab, capsys):
    for a in (1, 10):
        for b in ("global", "segment"):
            score = 0.5 + 0.25 * (a == 10) - 0.125 * (a == 10 and b == "segment")
            lab.cell(kmeans_iterations=a, final_assign=b, rows=lab.rows(score=score))
    from retrobench.report.tables.effects import effects

    single, pairs = effects(lab.store.columns(), "score")
    found = {(e.factors, e.levels): e.value for e in [*single, *pairs]}
    assert found[("method.kmeans_iterations",), (10,)] == pytest.approx(9.375)
    assert found[("method.final_assign",), ("segment",)] == pytest.approx(-3.125)
    names = ("method.kmeans_iterations", "method.final_assign")
    if (names, (10, "segment")) not in found:
        names, level = names[::-1], ("segment", 10)
    else:
        level = (10, "segment")
    assert found[names, level] == pytest.approx(-3.125)
    assert {effect.samples for effect in [*single, *pairs]} == {6}
    assert console.main(["effects", "--results", str(lab.store.root)]) == 0
    assert "interactions on score" in capsys.readouterr().out
    with pytest.raises(ValueError, match="choose from score"):
        effects(lab.store.columns(), "scores")


def test_a_larger_budget_that_answers_worse_raises_the_alarm(lab):
    from retrobench.report.checks.significance import budget_alarms

    lab.cell("quest", budget="5%", rows=lab.rows(count=20))
    lab.cell("quest", budget="10%", rows=lab.rows(count=20, score=0.0))
    lab.cell("quest", budget="64tok", rows=lab.rows(count=20, score=0.0))
    (line,) = budget_alarms(lab.store.columns())
    assert "budget 10% after quest" in line and "ALARM" in line and "40 losses" in line


def test_sweeps_are_listed_and_chosen(lab, capsys):
    key = lab.cell("full", rows=lab.rows())
    folder = lab.store.root / "sweeps" / "mine" / "2026"
    folder.mkdir(parents=True)
    done = {"key": key, "failed": {}, "ran": 1, "cached": 0, "message": "", "label": "full"}
    entries = [done, {"job": "x", "error": "boom"}]
    (folder / "cells.jsonl").write_text("".join(json.dumps(e) + "\n" for e in entries))
    where = ["--results", str(lab.store.root)]
    assert console.main(["sweeps", *where]) == 0
    assert capsys.readouterr().out == "mine: 2 cells, 1 failed\n"
    begun = [{"key": lab.cell("quest", rows=lab.rows()), "label": "quest", "todo": 9}]
    (folder / "plan.json").write_text(json.dumps({"started": "2026", "cells": begun}))
    assert console.main(["sweeps", *where]) == 0
    assert "2 cells, 1 failed; 1 began and have not ended" in capsys.readouterr().out
    assert console.main(["table", "--sweep", "mine", *where]) == 0
    with pytest.raises(SystemExit):
        console.main(["table", "--sweep", "yours", *where])


def test_dollar_signs_in_names_are_no_formulas(lab):
    from matplotlib.text import Text

    everything(lab)
    name = r"$\bad{$"
    frame = load(lab.store).replace({"method": {"quest": name}, "model": {"made_up": name}})
    seen = set()
    for figure in ("ruler_scores", "prefill_breakdown", "niah_grid", "pareto_accuracy_bytes"):
        drawing = FIGURES[figure](frame)
        drawing.savefig(io.BytesIO())  # a formula that cannot be read raises here
        written = drawing.findobj(Text)
        assert not any(text.get_parse_math() for text in written)
        seen |= {figure for text in written if name in text.get_text()}
    assert seen == {"ruler_scores", "prefill_breakdown", "niah_grid", "pareto_accuracy_bytes"}
