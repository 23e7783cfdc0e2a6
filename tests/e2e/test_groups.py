"""Cells that start from the same prompts: one prefill, and rows as if each had run alone."""

from __future__ import annotations

import pytest

from retrobench.cli import app as cli
from retrobench.run.group import Group
from retrobench.run.plan import prepare
from retrobench.run.spec import parse_run
from retrobench.store.results import ResultStore
from tests.e2e.runs import comparable, config, sweep


@pytest.mark.slow
@pytest.mark.parametrize("measure", ["score", "latency", "fidelity"])
def test_cells_that_share_a_prefill_have_the_rows_of_cells_alone(measure, tmp_path, monkeypatch):
    from retrobench.engine import prefill_cache

    prefills = []
    original = prefill_cache.prefill
    monkeypatch.setattr(
        prefill_cache, "prefill", lambda *a, **k: prefills.append(1) or original(*a, **k)
    )
    methods = [{"name": "retroinfer"}, {"name": "quest", "dense_layers": [0]}]
    if measure == "score":
        methods += [{"name": name} for name in ("full", "oracle_topk", "random")]
        # these ask for queries of the prompt: the last 512, all of them
        methods += [{"name": "retroinfer_plus"}]
        methods += [{"name": "retrieval_attention", "sink_tokens": 4, "local_tokens": 64}]
    changes = {
        "measure": {"name": measure, "steps": 4} if measure == "fidelity" else {"name": measure}
    }
    shared = sweep(tmp_path / "shared", methods, **changes)
    assert len(prefills) == 2  # two samples
    alone = sweep(tmp_path / "alone", methods, **changes, engine={"prefill_share": "off"})
    assert len(prefills) == 2 + 2 * len(methods)
    assert [one["key"] for one in shared] == [one["key"] for one in alone]
    for outcome in shared:
        assert outcome["ran"] == 2 and outcome["failed"] == {}
        key = outcome["key"]
        rows = ResultStore(tmp_path / "shared").read(key).rows.values()
        assert {row["prefill_shared_by"] for row in rows} == {len(methods)}
        assert all(row["prefill_s"] > 0 for row in rows)
        assert comparable(tmp_path / "shared", key) == comparable(tmp_path / "alone", key)


def test_one_cell_that_fails_stops_no_other(tmp_path, monkeypatch):
    from retrobench_methods.random import RandomIndex

    def broken(*_):
        raise RuntimeError("no luck")

    monkeypatch.setattr(RandomIndex, "select", broken)
    methods = [{"name": name} for name in ("random", "full", "oracle_topk")]
    methods.insert(1, {"name": "retroinfer", "num_clusters": 99999})
    random, refused, full, oracle = sweep(tmp_path, methods)
    assert isinstance(refused, ValueError) and "num_clusters=99999" in str(refused)
    assert random["failed"] == {"error": 2} and full["failed"] == oracle["failed"] == {}
    row = next(iter(ResultStore(tmp_path).read(random["key"]).rows.values()))
    assert "no luck" in row["message"]


def test_cells_of_a_group_go_on_from_where_each_of_them_was(tmp_path):
    task = {"name": "ruler", "tasks": ["niah_single_2"], "length": 1200, "samples": 1}
    cli.run_job(config(tmp_path, method={"name": "full"}, task=task))
    methods = [{"name": "full"}, {"name": "oracle_topk"}]
    for batch in (1, 2):
        engine = {"batch": batch}
        found = sweep(tmp_path, methods, engine=engine)
        assert [one["ran"] for one in found] == ([1, 2] if batch == 1 else [2, 2])
        again = sweep(tmp_path, methods, engine=engine)
        assert [(one["ran"], one["cached"]) for one in again] == [(0, 2), (0, 2)]


def test_a_prefill_that_fails_is_a_row_of_every_cell(tmp_path, monkeypatch):
    import torch

    from retrobench.engine import prefill_cache

    def full_memory(*_, **__):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(prefill_cache, "prefill", full_memory)
    for outcome in sweep(tmp_path, [{"name": "full"}, {"name": "random"}]):
        assert outcome["failed"] == {"oom": 2}


def test_where_memory_is_short_cells_prefill_for_themselves(tmp_path, monkeypatch):
    from retrobench.run import plan

    methods = [{"name": "full"}, {"name": "oracle_topk"}]
    monkeypatch.setattr(plan, "prompt_bytes", lambda *_: 2**50)
    for outcome in sweep(tmp_path, methods):
        rows = ResultStore(tmp_path).read(outcome["key"]).rows.values()
        assert all("prefill_shared_by" not in row for row in rows)


def test_prefilled_prompts_on_disk_serve_a_second_command(tmp_path, monkeypatch):
    from retrobench.engine import prefill_cache

    engine = {"prefill_cache_gib": 1.0}
    cli.run_job(config(tmp_path, method={"name": "full"}, engine=engine))
    monkeypatch.setattr(prefill_cache, "prefill", None)
    outcome = cli.run_job(config(tmp_path, method={"name": "streaming"}, engine=engine))
    assert outcome["ran"] == 2 and outcome["failed"] == {}
    rows = ResultStore(tmp_path).read(outcome["key"]).rows.values()
    assert {row["prefill_from"] for row in rows} == {"disk"}


def test_a_graph_that_cannot_be_is_refused_before_anything_runs(tmp_path):
    refused, run = sweep(
        tmp_path, [{"name": "quest"}, {"name": "full"}], engine={"executor": "graph"}
    )
    assert isinstance(refused, ValueError) and "method=quest needs the host" in str(refused)
    assert run["failed"] == {}
    rows = ResultStore(tmp_path).read(run["key"]).rows.values()
    assert {row["executor"] for row in rows} == {"graph"}
    eager = cli.run_job(config(tmp_path, method={"name": "full"}))
    assert eager["key"] != run["key"]
    again = ResultStore(tmp_path).read(eager["key"]).rows
    for row in rows:
        assert again[row["sample"]]["prediction"] == row["prediction"]


def test_a_cell_known_from_another_folder_joins_its_group(tmp_path):
    """What is remembered of a run must not tell where its results went."""
    cli.run_job(config(tmp_path / "elsewhere", method={"name": "full"}))
    raws = [config(tmp_path / "here", method={"name": name}) for name in ("full", "oracle_topk")]
    first, second = (entry.group for entry in cli.plan_runs(raws))
    assert first == second != ""


def test_what_another_process_ran_before_the_lock_was_had_is_not_run_again(tmp_path):
    raw = config(tmp_path)
    late = Group([prepare(parse_run(raw))])
    assert cli.run_job(raw)["ran"] == 2
    with late:
        assert list(late.batches()) == []
    assert late.outcomes()[0].cached == 2
