"""task=speed, tiny: rows, resume, the table, the figure; synthetic shapes and a model."""

from __future__ import annotations

import pandas as pd
import pytest
import torch
from rich.console import Console

from retrobench.cli import app as cli
from retrobench.cli.overrides import composed
from retrobench.engine import loader, synthetic
from retrobench.report.figures.draw import draw
from retrobench.report.figures.speed import latency_vs_load
from retrobench.report.tables.overview import COLUMNS, print_tables
from retrobench.store.results import ResultStore
from tests.e2e.runs import ROOT, config


def raw(method, results_dir, **task):
    options = {"context": [1280, 1536], "steps": 3, "warmup": 1, "error_steps": 2, "cold": False}
    task = {"name": "speed", "shape": "qwen25_7b", **options, **task}
    return config(results_dir, method={"name": method}, task=task)


def test_rows_resume_table_and_figure(tmp_path):
    for method in ("full", "retroinfer", "quest"):
        outcome = cli.run_job(raw(method, tmp_path))
        assert outcome["ran"] == 2 and not outcome["failed"]
    assert cli.run_job(raw("quest", tmp_path))["cached"] == 2
    store = ResultStore(tmp_path)
    rows = {
        (store.cell(key)["labels"]["method"], row["length"]): row
        for key in store.cell_keys()
        for row in store.read(key).rows.values()
    }
    full, retro = rows["full", 1536], rows["retroinfer", 1536]
    assert full["speed"]["output_error"] < 0.01  # bfloat16 rounding
    assert 0 < retro["speed"]["output_error"] < 1
    assert full["method_stats"]["backend"] == "sdpa"
    assert full["speed"]["read_bytes"] == pytest.approx(1536 * 4 * 128 * 2 * 2, rel=0.01)
    assert 0 < retro["speed"]["read_bytes"] < full["speed"]["read_bytes"]
    assert full["speed"]["step_q1_s"] <= full["speed"]["step_s"] <= full["speed"]["step_q3_s"]
    assert full["live"]["attended_tokens"] == pytest.approx(full["live"]["context_tokens"])
    assert full["decode_steps"] == 3 and retro["seal_s"] > 0
    assert store.cell(store.cell_keys()[0])["labels"]["measure"] == "latency"
    console = Console(width=240, record=True)
    print_tables(store.columns(COLUMNS, None), console)
    text = console.export_text()
    assert "vs full" in text and "1.00x" in text and "scores" not in text
    ((_, path, reason),) = draw(store, tmp_path / "figures", ["throughput"])
    assert path is not None and path.exists(), reason


def test_synthetic_shapes_need_no_weights(tmp_path, monkeypatch):
    def load(config):
        raise AssertionError("weights are read")

    monkeypatch.setattr(loader, "_resident", {})
    monkeypatch.setattr(loader, "load", load)
    outcome = cli.run_job(raw("streaming", tmp_path))
    assert outcome["ran"] == 2 and not outcome["failed"]
    assert ResultStore(tmp_path).cell(outcome["key"])["weight_bytes"] == 0


@pytest.mark.parametrize("task", ["speed", "serve", "machine"])
@pytest.mark.parametrize("method", ["full", "infinigen"])
def test_synthetic_shapes_need_no_model_and_none_of_its_files(tmp_path, monkeypatch, task, method):
    monkeypatch.setenv("RETROBENCH_CACHE", str(tmp_path))  # the default model is not fetched
    asked = [f"task={task}", f"method={method}", f"results_dir={tmp_path}"]
    (entry,) = cli.plan_runs([composed(asked, ROOT / "conf")])
    assert entry.state == "run", entry.message
    assert "smollm2" not in entry.label and entry.weight_bytes == 0


def test_a_model_end_to_end(tmp_path):
    job = raw("streaming", tmp_path, shape="model", context=[256], batch=[1, 2])
    assert not cli.run_job(job)["failed"]
    store = ResultStore(tmp_path)
    _, row = store.read(store.cell_keys()[0]).rows.values()
    assert row["prefill_s"] > 0 and row["batch"] == 2
    assert row["prefill_tokens_per_s"] == pytest.approx(2 * 256 / row["prefill_s"])
    assert row["prefill_attention"] == "split"
    assert row["speed"]["tokens_per_s"] == pytest.approx(2 / row["speed"]["step_s"])
    frame = store.columns()
    failed = frame.iloc[:1].assign(status="oom", method="full", **{"meta.batch": 4})
    panel = latency_vs_load(pd.concat([frame, failed])).axes[0]
    (line,) = [line for line in panel.lines if line.get_label() == "streaming"]
    latency = row["prefill_s"] + row["seal_s"] + row["decode_s"]
    assert line.get_xydata()[1] == pytest.approx([2 / latency, latency])
    assert "full: OOM from batch 4" in [text.get_text() for text in panel.texts]


def test_what_cannot_run_is_a_row_that_says_why(tmp_path):
    outcome = cli.run_job(raw("full", tmp_path, context=[100_000_000]))
    assert outcome["failed"] == {"oom": 1}
    store = ResultStore(tmp_path)
    (row,) = store.read(store.cell_keys()[0]).rows.values()
    assert "GiB of memory are free; use a smaller task.context" in row["message"]


def test_speed_has_one_measure(tmp_path):
    with pytest.raises(ValueError, match="task=speed has measure=latency only"):
        cli.run_job({**raw("full", tmp_path), "measure": {"name": "fidelity"}})


def test_synthetic_data_repeats_and_differs_between_rows_and_heads():
    args = (2, 2, 300, 64, torch.float32, 5, "cpu")
    k, v = synthetic.keys_and_values(*args)
    again, _ = synthetic.keys_and_values(*args)
    assert torch.equal(k, again) and k.isfinite().all() and v.isfinite().all()
    assert not torch.equal(k[0], k[1]) and not torch.equal(k[:, 0], k[:, 1])
    q = synthetic.queries(k, 3, 0)
    assert q.shape == (2, 6, 1, 64) and not torch.equal(q[0], q[1])


@pytest.mark.slow
def test_a_method_that_works_a_layer_ahead(tmp_path):
    def run(layers):
        job = raw("infinigen", tmp_path, context=600, layers=layers)
        job["method"]["calibration_dir"] = str(tmp_path / "calibration")
        outcome = cli.run_job({**job, "budget": "20%"})
        return outcome, next(iter(ResultStore(tmp_path).read(outcome["key"]).rows.values()))

    outcome, row = run(1)
    assert outcome["failed"] and "task.layers=2" in row["message"]
    _, row = run(3)
    assert row["live"]["decode_calls"] == {"8": 8, "9": 8, "10": 8}
    assert 0 <= row["live"]["fetch_hidden_frac"] <= 1
    assert 0.01 < row["speed"]["output_error"] < 1  # of a sparse layer
    assert row["live"]["attended_tokens"] < 0.6 * 600
