"""Tables never average over survivors; comparisons pair samples and raise the alarm."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console

from retrobench.report.benchmarks import averages, benchmark
from retrobench.report.checks.significance import full_comparisons, order_alarms
from retrobench.report.rows import score_grid
from retrobench.report.tables.fidelity import ATTENTION, common_layers, fidelity_matrix
from retrobench.report.tables.overview import COLUMNS, print_tables
from retrobench.report.tables.scores import caption, score_matrix
from retrobench.report.tables.search import search_matrix
from retrobench.stats.intervals import compare, holm, sign_test


def row(key, sample, score, method="full", status="ok", task="vt", **more):
    return {
        "key": key * 8,
        "model": "m",
        "method": method,
        "benchmark": "ruler",
        "protocol": "query_aware",
        "budget": None,
        "sample": sample,
        "task": task,
        "length": 4096,
        "status": status,
        "score": score if status == "ok" else None,
        "prompt_hash": sample,
        "meta.stand_in": False,
        "engine.batch": 1,
        **more,
    }


def test_scores_and_failures():
    rows = [row("aa", f"vt/{i}", 1.0) for i in range(3)] + [row("aa", "vt/3", 0.0)]
    rows += [row("bb", "vt/0", 1.0), row("bb", "vt/1", 0, status="oom")]
    matrix = score_matrix(pd.DataFrame(rows))
    assert list(matrix["vt@4K"]) == ["75.0", "oom 1/2"]
    assert list(matrix["avg"]) == ["75.0", "-"]


def test_niah_grid():
    rows = [
        row(
            "aa",
            f"niah/{d}/{i}",
            float(d < 50),
            task="niah",
            **{"meta.depth": d, "meta.stand_in": True},
        )
        for d in (0, 100)
        for i in range(2)
    ]
    grid = score_grid(pd.DataFrame(rows), "meta.depth")
    assert grid.loc[0, 4096] == 1.0 and grid.loc[100, 4096] == 0.0
    assert "substitute data" in caption(pd.DataFrame(rows))


def test_comparisons_pair_the_same_prompts_and_alarm():
    rows = [row("aa", str(i), 0.5) for i in range(20)]
    rows += [row("bb", str(i), 1.0, "quest") for i in range(20)]
    rows += [row("cc", str(i), 0.5, "random") for i in range(10)]
    rows += [row("cc", "other", 1.0, "random")]
    better, equal = full_comparisons(pd.DataFrame(rows))
    assert "quest" in better and "+50.0 points" in better and "ALARM" in better
    assert "random" in equal and "10 ties" in equal and "ALARM" not in equal
    rows[25]["prompt_hash"] = "changed"
    assert "19 wins" in full_comparisons(pd.DataFrame(rows))[0]


def test_a_method_between_its_controls_is_quiet_and_one_beyond_them_is_not():
    def cells(quest, budget="5%"):
        scores = {"oracle_topk": 0.5, "random": 0.2, "quest": quest, "streaming": 0.0}
        return pd.DataFrame(
            row(name[:2], str(i), score, name, budget=budget)
            for name, score in scores.items()
            for i in range(8)
        )

    assert order_alarms(cells(0.3)) == []
    (better,) = order_alarms(cells(0.9))
    assert "m ruler query_aware: quest quququ at 5%" in better and "beats oracle_topk" in better
    (worse,) = order_alarms(cells(0.1))
    assert "random tokens answer better" in worse and "8 losses" in worse
    # equal mass is no equal number of tokens: an estimate of it may take more than the oracle
    assert order_alarms(cells(0.9, "top_p:0.9")) == []


def test_sign_test_values():
    assert sign_test(0, 0) == 1.0
    assert sign_test(5, 0) == pytest.approx(2 / 32)
    assert sign_test(8, 2) == pytest.approx(2 * (1 + 10 + 45) / 1024)


@given(st.lists(st.floats(0, 1), min_size=1, max_size=30))
def test_holm_never_lowers_and_keeps_order(values):
    adjusted = holm(values)
    assert all(a >= v for a, v in zip(adjusted, values, strict=True)) and max(adjusted) <= 1
    assert list(np.argsort(values, kind="stable")) == sorted(
        range(len(values)), key=lambda i: (adjusted[i], values[i], i)
    )


@settings(deadline=None)
@given(st.lists(st.tuples(st.floats(0, 1), st.floats(0, 1)), min_size=1, max_size=40))
def test_compare_counts_and_interval(pairs):
    ours, base = zip(*pairs, strict=True)
    result = compare(ours, base)
    assert result.wins + result.losses + result.ties == len(pairs)
    assert result.low - 1e-12 <= result.difference + 1 and result.low <= result.high
    reverse = compare(base, ours)
    assert reverse.p_value == result.p_value and reverse.wins == result.losses


def test_unpaired_scores_are_refused():
    with pytest.raises(ValueError, match="paired scores"):
        compare([1.0], [])


SPARSE_LAYERS = ("[1, 3]", "[]", "[3, 4]")


def test_searches_tell_what_they_scanned_and_what_they_did_not_reach(lab):
    asked = {"queries": {"recall_5": 0.91234, "scanned_95": 0.0421}}
    asked["keys"] = {"recall_5": None, "scanned_95": None}
    for scale in (1, 2):
        found = {"keys": 5000 * scale, "build_s": 2.0, "of": asked}
        rows = [lab.row(search=found)]
        if scale == 2:  # not reached in one of two samples
            reached = {**found, "of": {**asked, "keys": asked["queries"]}}
            rows = [lab.row(index=1, search=reached), *rows]
        lab.cell("retrieval_attention", top_k=scale, rows=rows)
    table = search_matrix(lab.store.columns(COLUMNS)).set_index("changed")
    assert dict(table["keys"]) == {"top_k=1": "5000", "top_k=2": "10000"}
    assert table.loc["top_k=2", "keys: % scanned"] == "none"
    line = table.loc["top_k=1"]
    assert line["queries: % scanned"] == "4.2" and line["queries: recall at 5%"] == "0.912"
    assert line["keys: % scanned"] == line["keys: recall at 5%"] == "none"
    lab.cell("full", rows=[lab.row()])
    assert len(search_matrix(lab.store.columns(COLUMNS))) == 2


def test_fidelity_compares_methods_on_the_layers_that_all_leave_sparse(lab):
    def measured(sparse, recall):
        by_layer = {"layer_mean": {"recall": recall}, "layer_tail": {"recall": recall}}
        return {"steps": 3, "layers": [0, 1, 2], "sparse_layers": sparse, **by_layer}

    lab.cell("full", rows=[lab.row(fidelity=measured([], [1.0, 1.0, 1.0]))])
    lab.cell("random", rows=[lab.row(fidelity=measured([0, 1, 2], [1.0, 0.9, 0.2]))])
    lab.cell("quest", rows=[lab.row(fidelity=measured([2], [1.0, 1.0, 0.6]))])
    frame = lab.store.columns(COLUMNS)
    table = fidelity_matrix(frame, ATTENTION)
    table = table.set_index("method").loc[["full", "random", "quest"]]
    assert list(table["sparse layers"]) == ["none", "0-2", "2"]
    assert set(table["compared"]) == {"2"} and list(table["recall"]) == ["1", "0.2", "0.6"]
    lab.cell("quest", model="b", rows=[lab.row(fidelity=measured([0, 1], [0.4, 0.2, 1.0]))])
    table = fidelity_matrix(lab.store.columns(COLUMNS), ATTENTION).set_index(["model", "method"])
    assert table.loc[("made_up", "quest"), "compared"] == "2"  # another model changes nothing
    assert table.loc[("b", "quest"), ["compared", "recall"]].tolist() == ["0-1", "0.3"]
    sparse = [
        pd.DataFrame({"fidelity.sparse_layers": texts})
        for texts in (SPARSE_LAYERS, SPARSE_LAYERS[1:])
    ]
    assert [common_layers(rows) for rows in sparse] == [[3], [3, 4]]


def test_a_table_too_wide_for_the_terminal_is_turned(lab):
    names = [f"data_set_{i}" for i in range(21)]
    for method in ("full", "quest"):
        lab.cell(method, benchmark="longbench", rows=[lab.row(name, 0, 0) for name in names])
    frame = lab.store.columns(COLUMNS)
    for width, turned in ((100, True), (400, False)):
        console = Console(width=width, record=True)
        print_tables(frame, console)
        lines = console.export_text().splitlines()
        (line,) = [line for line in lines if "data_set_20" in line]
        assert (line.count("100.0") == 2) == turned


def test_tables_ask_the_benchmark_of_a_row_and_show_rows_of_unknown_ones():
    frame = pd.DataFrame(
        [
            row("aa", "a", 1.0, task="niah_multikey_2"),
            row("aa", "b", 1.0, task="niah_multikey_2", benchmark="no_longer_there"),
        ]
    )
    matrix = score_matrix(frame)
    assert {"mk2@4K", "niah_multikey_2@4K"} <= set(matrix)
    assert list(averages(frame)) == [] and benchmark("ruler").num_tasks == 13
