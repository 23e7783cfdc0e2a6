"""Tables say what was attended wherever it is not what the budget asked for."""

from __future__ import annotations

import pytest

from retrobench.cli import app
from retrobench.report.headroom import load
from retrobench.report.tables.cost import cost_matrix
from retrobench.report.tables.overview import COLUMNS
from retrobench.report.tables.scores import caption, score_matrix


def table(lab, budget, tokens, method="quest"):
    """The scores of a cell that attends ``tokens`` (context length: tokens)."""
    rows = []
    for length, attended in tokens.items():
        row = lab.row(length=length)  # ten steps: the cache holds 5.5 tokens more on average
        row["live"]["attended_tokens"] = attended
        rows.append({**row, "prompt_tokens": length})
    lab.cell(method, budget=budget, rows=rows)
    return load(lab.store, COLUMNS, None)


@pytest.mark.parametrize(
    ("budget", "tokens", "text"),
    [
        ("10%", {4000: 410.0}, ""),  # whole pages
        ("10%", {1000: 1005.5}, "100%"),
        ("10%", {1000: 1005.5, 4000: 400.0}, "10-100%"),
        ("69tok", {4000: 85.0}, "85 tok"),
        ("1tok", {4000: 26.0}, "26 tok"),
        ("2tok", {4000: 3.0}, ""),  # one token apart
        ("100%", {1000: 1005.5}, ""),
        ("5000tok", {1000: 1005.5}, ""),  # all there is
        ("1000tok", {4000: 500.0}, "500 tok"),
        ("1MiB", {4000: 512.0}, "512 tok"),
        (None, {4000: 128.0}, "3.2%"),
    ],
)
def test_what_was_attended_is_shown_where_it_is_not_what_was_asked(lab, budget, tokens, text):
    frame = table(lab, budget, tokens)
    assert list(score_matrix(frame)["attended"]) == [text]
    assert ("attended: share of the context" in caption(frame)) == bool(text)


def test_a_timed_run_says_how_long_its_context_was_when_it_counted(lab):
    row = {**lab.row(length=100), "prompt_tokens": 100}
    row["live"] = {**row["live"], "attended_tokens": 150.0, "context_tokens": 150.0}
    lab.cell("quest", budget="10%", rows=[row])
    older = {**row, "live": {**row["live"]}, "speed": {"step_s": 1.0}, "decode_steps": 50}
    del older["live"]["context_tokens"]
    lab.cell("streaming", budget="10%", rows=[older])
    assert list(score_matrix(load(lab.store, COLUMNS, None))["attended"]) == ["100%"] * 2


def test_full_attention_has_nothing_to_say(lab):
    assert list(score_matrix(table(lab, None, {4000: 4005.5}, "full"))["attended"]) == [""]


def test_costs_are_told_by_context_length(lab):
    costs = cost_matrix(table(lab, "10%", {1024: 1029.5, 4096: 410.0}))
    assert list(costs["context"]) == ["1K", "4K"]
    assert list(costs["attended"]) == ["100%", ""]
    assert list(costs["tokens attended"]) == ["1030", "410"]


def test_costs_name_the_rate_and_the_attention_of_the_prefill(lab):
    ran = [(2000.0, "split"), (3000.0, "split"), (4000.0, "masked+split"), (None, None)]
    names = "prefill_tokens_per_s", "prefill_attention"
    rows = [lab.row(index=i, **dict(zip(names, made, strict=True))) for i, made in enumerate(ran)]
    lab.cell("quest", rows=rows)
    lab.cell("full", rows=[lab.row()])  # of an older version
    costs = cost_matrix(load(lab.store, COLUMNS, None)).set_index("method")
    assert costs.loc["quest", "prefill tok/s"] == "3000"
    assert costs.loc["quest", "prefill by"] == "split, masked+split"
    assert list(costs.loc["full", ["prefill tok/s", "prefill by"]]) == ["", ""]


def test_costs_have_the_share_of_index_updates(lab):
    lab.cell(rows=[lab.row(spans={"update": 0.02, "attend": 0.5})])  # of a second
    lab.cell("quest", rows=[lab.row(spans={"attend": 0.5})])
    costs = cost_matrix(load(lab.store, COLUMNS, None)).set_index("method")
    assert dict(costs["update %"]) == {"retroinfer": "2.00", "quest": ""}


def test_the_plan_says_what_dense_layers_make_of_a_budget(tmp_path, capsys):
    task = {"name": "ruler", "tasks": ["niah_single_2"], "length": [1024, 2048], "samples": 1}
    raw = {"model": {"name": "constructed", "source": "constructed"}, "task": task}
    raw |= {"budget": "10%", "results_dir": str(tmp_path)}

    def shown(**method):
        app.show_plan(app.plan_runs([{**raw, "method": method}]))
        return capsys.readouterr().out

    assert "2 of 2 layers are dense" in shown(name="quest")
    half = shown(name="quest", dense_layers=[0])
    assert "budget=10% attends 55% of 1024 tokens, 55% of 2048 tokens" in half
    assert "dense" not in shown(name="random")
