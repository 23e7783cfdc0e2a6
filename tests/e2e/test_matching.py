"""A solved knob reaches the reference's measured cost, or says how near it came."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from retrobench.cli import app as cli
from retrobench.run.matching import TOLERANCE, cost, search
from retrobench.store.results import ResultStore
from tests.e2e.runs import config


def job(results, **changes):
    task = {"name": "ruler", "tasks": ["niah_multikey_2"], "length": 1400, "samples": 1}
    return cli.run_job(config(results, task=task, **changes))


@pytest.mark.parametrize("axis", ["tokens", "hbm"])
def test_the_solved_run_costs_what_the_reference_does(tmp_path, axis):
    method = {"name": "oracle_topk"} if axis == "tokens" else {"name": "streaming"}
    reference = job(tmp_path, method={"name": "random"}, budget="12%")["key"]
    outcome = job(tmp_path, method=method, match=axis, reference=reference[:8])
    store = ResultStore(tmp_path)
    costs = [
        cost(axis, row["live"], row["footprint"])
        for key in (reference, outcome["key"])
        for row in store.read(key).rows.values()
    ]
    assert costs[1] == pytest.approx(costs[0], rel=TOLERANCE)
    assert f"match={axis} of {reference[:6]}: budget=" in outcome["matched"]


@pytest.mark.parametrize(
    ("engine", "options", "reference"),
    [
        ({"batch": 2}, {"match": "hbm", "method": {"name": "streaming"}}, "random@12%"),
        (
            {"dense_layers": [0]},
            {"match": "gpu_memory", "budget": "20%",
             "method": {"name": "quest", "placement": "cpu", "cache": "host"}},
            "retroinfer@20%",
        ),
    ],
)  # fmt: skip
def test_batches_and_dense_layers_are_solved_for(tmp_path, engine, options, reference):
    task = {"name": "ruler", "tasks": ["niah_multikey_2"], "length": 1400, "samples": 2}
    made = config(tmp_path, task=task, engine=engine, reference=reference, **options)
    outcome, store = cli.run_job(made), ResultStore(tmp_path)
    costs = [
        [
            cost(made["match"], row["live"], row["footprint"])
            for row in store.read(key).rows.values()
        ]
        for key in (outcome["key"], *({*store.cell_keys()} - {outcome["key"]}))
    ]
    assert costs[0] == pytest.approx(costs[1], rel=TOLERANCE / 2)


def test_memory_is_matched_by_the_methods_own_knob(tmp_path):
    placed = {"placement": "cpu", "cache": "host"}
    options = {"match": "gpu_memory", "reference": "retroinfer@20%", "budget": "20%"}
    outcome = job(tmp_path, method={"name": "quest", **placed}, **options)
    assert "method.cache_frac=" in outcome["matched"] and outcome["ran"] == 1
    with pytest.raises(ValueError, match="methods that have one: infinigen, .*quest"):
        job(tmp_path, method={"name": "full"}, **options)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"match": "token", "reference": "x"}, "did you mean tokens"),
        ({"match": "hbm"}, "reference=KEY"),
        ({"match": "hbm", "reference": "x", "budget": "2%"}, "leave budget= out"),
        ({"match": "hbm", "reference": "ffff"}, "no such cell"),
    ],
)
def test_bad_requests_name_the_fix(tmp_path, changes, words):
    with pytest.raises(ValueError, match=words):
        job(tmp_path, method={"name": "random"}, **changes)


@given(
    target=st.floats(5, 900),
    step=st.integers(1, 16),
    fixed=st.one_of(st.floats(0, 4), st.floats(100, 2000)),
)
def test_search_finds_the_nearest_step(target, step, fixed):
    """Costs that grow in whole pages: within half a page, in a handful of measurements."""
    asked = []

    def measured(tokens):
        asked.append(tokens)
        return fixed + step * (tokens // step)

    target += max(0, fixed - 4)  # dense layers cost the same at any budget
    _, found = search(measured, target, 1, 1000)
    assert abs(found - target) <= max(step, TOLERANCE * target) and len(asked) <= 10
