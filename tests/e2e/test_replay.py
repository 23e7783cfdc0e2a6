"""task=serve: cells like others (rows, resume, table, JSON), on modelled and on measured steps."""

from __future__ import annotations

import json

import pytest
from omegaconf import OmegaConf
from rich.console import Console

from retrobench.cli import app as cli
from retrobench.core.budget import Budget
from retrobench.core.registry import method_class
from retrobench.evaluate.counted import counted_contexts, traffic_curve
from retrobench.report.page.html import render
from retrobench.report.tables.overview import COLUMNS, print_tables
from retrobench.serving.dims import DIMS
from retrobench.serving.traffic import full_attention
from retrobench.store.results import ResultStore
from tests.conf.test_conf import CONF
from tests.e2e import runs
from tests.e2e.test_speed import raw as speed_raw

TASK = {
    "requests": 30, "rate": [0.5, 2.0], "lengths": "fixed", "input_tokens": 900,
    "output_tokens": 60, "max_context": 2048,
}  # fmt: skip


def raw(results, hardware="gpu", method="full", machine=(), **task):
    values = OmegaConf.to_container(OmegaConf.load(CONF / "hardware" / f"{hardware}.yaml"))
    task, hardware = {"name": "serve", **TASK, **task}, {**values, **dict(machine)}
    return runs.config(results, method={"name": method}, task=task, hardware=hardware)


def rows_of(results, outcome):
    return ResultStore(results).read(outcome["key"]).rows


def test_cells_rows_resume_and_table(tmp_path):
    outcomes = {}
    for hardware in ("gpu", "csd"):
        for method in ("full", "quest"):
            outcomes[hardware, method] = cli.run_job(raw(tmp_path, hardware, method))
            assert not outcomes[hardware, method]["failed"]
    assert len({outcome["key"] for outcome in outcomes.values()}) == 4
    assert cli.run_job(raw(tmp_path))["cached"] == 3
    store = ResultStore(tmp_path)
    rows = rows_of(tmp_path, outcomes["csd", "quest"])
    assert set(rows) == {"rate-0.5", "rate-2", "largest"}
    found = rows["rate-2"]["replay"]
    assert found["kind"] == "replay" and found["completed"] == 30
    assert found["counts"].startswith("counted on synthetic keys")
    assert found == json.loads(
        (tmp_path / outcomes["csd", "quest"]["key"] / "replay_rate-2.json").read_text()
    )
    full = rows_of(tmp_path, outcomes["csd", "full"])["rate-2"]["replay"]
    assert full["counts"] == "formula: all K and V"
    assert full["mean_tpot_ms"] > 2 * found["mean_tpot_ms"]  # flash is what it waits for
    console = Console(width=240, record=True)
    print_tables(store.columns(COLUMNS, None), console)
    text = console.export_text()
    assert "serving, replayed" in text and "csd" in text and "max " in text
    assert "nothing was served" in text and "scores" not in text
    page = render(store, store.cell_keys(), "replays").decode()
    assert "Serving, replayed" in page and "Scores (x100)" not in page


def test_a_replay_is_the_same_twice_and_follows_its_seed(tmp_path):
    task = {"lengths": "dolphin_short", "largest_rate": False}

    def replayed(folder, **more):
        row = rows_of(folder, cli.run_job(raw(folder, **task, **more)))["rate-2"]
        return row["replay"]

    first = replayed(tmp_path / "a")
    assert first == replayed(tmp_path / "b")
    assert first != replayed(tmp_path / "c", seed=1)


def test_a_machine_is_part_of_the_key_and_its_price_is_not(tmp_path):
    def key(**machine):
        return cli.run_job(raw(tmp_path, "csd", rate=[1.0], largest_rate=False, machine=machine))[
            "key"
        ]

    assert key() == key(usd_per_hour=9.0) != key(drives=4)


def test_measured_steps(tmp_path):
    serve = raw(tmp_path, "measured", arrivals="closed", clients=2, shape="model", input_tokens=300)
    serve["hardware"]["rows"] = str(tmp_path)
    with pytest.raises(ValueError, match=r"no steps of method=full .* experiment=surface method=f"):
        cli.run_job(serve)
    points = {"shape": "model", "context": [256, 512], "batch": [1, 2], "warmup": 1}
    assert not cli.run_job(speed_raw("full", tmp_path, **points))["failed"]
    outcome = cli.run_job(serve)
    (row,) = rows_of(tmp_path, outcome).values()
    assert row["status"] == "ok" and row["replay"]["max_concurrency"] == 2
    assert row["replay"]["counts"] == "measured steps" and row["replay"]["peak_batch"] == 2
    cli.run_job({**speed_raw("full", tmp_path, **points | {"steps": 4})})
    assert cli.run_job(serve)["key"] != outcome["key"]  # other steps, another cell
    long = {**serve, "task": {**serve["task"], "input_tokens": 600}}
    outcome = cli.run_job(long)
    (row,) = rows_of(tmp_path, outcome).values()
    assert row["status"] != "ok" and "only 256-512 tokens were measured" in row["message"]
    named = {**serve, "task": {**serve["task"], "shape": "llama31_8b"}}
    with pytest.raises(ValueError, match="task.shape=model with model=NAME"):
        cli.run_job(named)


def test_what_makes_no_sense_is_one_line(tmp_path):
    with pytest.raises(ValueError, match="task=serve has measure=replay only"):
        cli.run_job({**raw(tmp_path), "measure": {"name": "latency"}})
    with pytest.raises(ValueError, match="measure=replay simulates the queue of task=serve, not t"):
        cli.run_job({**raw(tmp_path), "task": {"name": "niah"}, "measure": {"name": "replay"}})
    with pytest.raises(ValueError, match="a replay does not model them"):
        cli.run_job({**raw(tmp_path), "engine": {"dense_layers": [0]}})
    with pytest.raises(ValueError, match="rate=0 means as the trace has it"):
        cli.run_job(raw(tmp_path, rate=[0]))
    trace = tmp_path / "bad.csv"
    trace.write_text("arrival_s,input_tokens,output_tokens\n0,5,5\n1,5\n")
    with pytest.raises(ValueError, match=r"bad.csv:3: output_tokens must be a number"):
        cli.run_job(raw(tmp_path, trace=str(trace)))


def test_a_trace_is_replayed_as_recorded_or_at_a_rate(tmp_path):
    trace = tmp_path / "t.csv"
    lines = [f"{i},100,10" for i in range(5)]
    trace.write_text("\n".join(["arrival_s,input_tokens,output_tokens", *lines]))
    job = raw(tmp_path, trace=str(trace), rate=[0, 2.5], largest_rate=False)
    rows = rows_of(tmp_path, cli.run_job(job))
    assert rows["rate-0"]["replay"]["duration"] == pytest.approx(4, abs=0.2)
    assert rows["rate-2.5"]["replay"]["duration"] == pytest.approx(2, abs=0.2)
    changed = trace.read_text().replace("4,100", "8,100")
    trace.write_text(changed)
    assert cli.run_job(job)["ran"] == 2  # other requests, another cell


def curve(name, budget=None, flash=False, **options):
    cls = method_class(name)
    dims = DIMS["llama31_8b"]
    config = cls.Config(**options)
    return traffic_curve(cls, config, budget, dims, 4096, flash=flash, device="cuda")


def test_counted_bytes_of_full_attention_are_its_formula():
    counted = curve("full", flash=True)
    formula = full_attention(DIMS["llama31_8b"].kv_token_bytes, 4096)
    assert [n for n, _ in counted.points] == list(counted_contexts(4096))
    for context in (1024, 3000, 4096):
        # counted over some steps after the prompt
        assert counted.at(context).kv == pytest.approx(formula.at(context).kv, rel=0.02)
        assert counted.at(context).flash == pytest.approx(formula.at(context).flash, rel=0.02)


def test_counted_bytes_of_a_budget_are_its_tokens():
    dims, moved = DIMS["llama31_8b"], curve("quest", Budget.parse("256tok"), flash=True).at(4096)
    assert moved.kv == pytest.approx(256 * dims.kv_token_bytes, rel=0.1)
    # min and max of every page of 16 tokens: a share of 1/16 of K and V
    assert moved.index == pytest.approx(4096 * dims.kv_token_bytes / 16, rel=0.02)
    # chosen tokens are whole pages of the drive, too
    assert moved.kv <= moved.flash <= 1.3 * moved.kv
    scattered = curve("random", Budget.parse("256tok"), flash=True).at(4096)
    assert scattered.flash > 8 * scattered.kv


def test_offloaded_caches_cross_the_link():
    moved = curve("full_offload").at(4096)
    assert moved.h2d == pytest.approx(moved.kv, rel=0.01)
    cached = curve("retroinfer", placement="pinned").at(4096)
    assert 0 < cached.h2d <= cached.kv
