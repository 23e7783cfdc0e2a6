"""The program as its user meets it: run, run again, kill, resume, sweep, wrong input."""

from __future__ import annotations

import csv
import json
import signal
import time

import pytest

from retrobench.cli import app as cli
from retrobench.store.results import ResultStore
from tests.e2e import forks
from tests.e2e.runs import config

RULER = {
    "name": "ruler",
    "tasks": ["niah_single_2", "niah_multikey_1"],
    "length": 1400,
    "samples": 2,
}


def job(results, **changes):
    """One composed configuration, in this process."""
    return cli.run_job(config(results, **{"task": dict(RULER), **changes}))


def run_py(*arguments):
    return forks.run("run.py", *arguments)


def test_rows_say_what_happened(tmp_path):
    outcome = job(tmp_path)
    assert (outcome["ran"], outcome["cached"], outcome["failed"]) == (4, 0, {})
    rows = ResultStore(tmp_path).read(outcome["key"]).rows
    good = rows["niah_single_2/1400/0"]
    assert good["status"] == "ok" and good["score"] == 1.0
    assert good["references"][0] in good["prediction"] and good["stop_reason"] == "eos"
    assert good["live"]["decode_calls"] == {"0": good["decode_steps"], "1": good["decode_steps"]}
    assert 0 < good["live"]["attended_tokens"] < 200 < good["live"]["estimated_tokens"]
    assert good["live"]["bytes_per_step"]["kv"] > 0 and good["footprint"]["device"] > 0
    assert good["prefill_s"] > 0 and good["seal_s"] > 0 and good["peak_bytes"]["process"] > 0
    assert good["meta"]["stand_in"] and good["prompt_tokens"] <= 1400
    about = ResultStore(tmp_path).cell(outcome["key"])
    assert about["provenance"]["versions"]["torch"] and "commit" in about["provenance"]


def test_a_finished_cell_runs_nothing_and_more_samples_continue_it(tmp_path):
    first = job(tmp_path)
    again = job(tmp_path)
    assert (again["key"], again["ran"], again["cached"]) == (first["key"], 0, 4)
    more = job(tmp_path, task={**RULER, "samples": 3})
    assert (more["key"], more["ran"], more["cached"]) == (first["key"], 2, 4)


@pytest.mark.slow
def test_full_random_and_batches(tmp_path):
    task = {**RULER, "tasks": ["niah_multikey_2"]}

    def mean(**changes):
        outcome = job(tmp_path, task=task, **changes)
        rows = ResultStore(tmp_path).read(outcome["key"]).rows.values()
        return sum(row["score"] for row in rows) / len(rows)

    assert mean(method={"name": "full"}) == 1
    assert mean(engine={"batch": 2}) == 1
    assert mean(method={"name": "random"}) == 0
    assert mean(protocol={"name": "query_agnostic"}) == 1
    assert mean(protocol={"name": "decode_tail", "tail_tokens": 8}) == 1


def test_a_nan_is_a_row_and_the_next_run_tries_again(tmp_path, monkeypatch):
    import torch

    from retrobench.engine import loader

    loaded = loader.resident(_model_config())
    weight = loaded.model.lm_head.weight
    original = weight.detach().clone()
    weight.data[5, 5] = torch.nan
    outcome = job(tmp_path)
    assert outcome["failed"] == {"nan": 4}
    weight.data.copy_(original)
    assert job(tmp_path)["failed"] == {} and job(tmp_path)["ran"] == 0


def test_what_is_planned_for_a_cpu_is_neither_pinned_nor_on_a_device(tmp_path):
    """A meta model has no device: the plan is made for the one that will run."""
    from retrobench.core.registry import method_class
    from retrobench.engine import loader
    from retrobench.evaluate.calibrate import calibrate
    from retrobench.run import plan as preflight
    from retrobench.run.spec import parse_run

    shape = {"model_type": "llama", "num_hidden_layers": 4, "hidden_size": 64}
    model = {"weights": "random", "config_json": json.dumps(shape), "device": "cpu"}
    raw = {"method": {"name": "infinigen"}, "model": model, "task": dict(RULER)}
    spec = parse_run({**raw, "results_dir": str(tmp_path)})
    calibrate(method_class("infinigen"), spec.method_config, "data", loader.load(spec.model))
    prepared = preflight.prepare(spec, "none")
    plan = prepared.summary.footprint
    assert plan.pinned == 0 and plan.host > plan.device > 0


def _model_config():
    from retrobench.core.spec import parse
    from retrobench.engine.loader import ModelConfig

    return parse(ModelConfig, {"name": "constructed", "source": "constructed"}, "model")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"method": {"name": "retroinfr"}}, "did you mean retroinfer"),
        ({"task": {"name": "rulr"}}, "did you mean ruler"),
        ({"method": {"name": "retroinfer", "num_centroids": 3}}, "method.num_clusters"),
        ({"task": {**RULER, "tasks": ["vtt"]}}, "did you mean vt"),
        ({"task": {**RULER, "length": 200000}}, "longer than the context of model constructed"),
        ({"budget": "5 apples"}, "is not a budget"),
        ({"method": {"name": "retroinfer", "num_clusters": 1399}}, "larger than the 1332 tokens"),
        ({"model": {"source": "local", "path": "nowhere"}}, "no config.json"),
        ({"model": {"source": "hf", "id": "no/such-model"}}, "retrobench fetch no/such-model"),
        ({"model": {"source": "hf"}}, "needs model.id"),
        ({"tracker": {"name": "wandbb"}}, "did you mean wandb"),
        ({"protocl": "x"}, "did you mean protocol"),
        ({"engine": {"batch": 0}}, "engine.batch"),
    ],
)
def test_bad_input_names_the_thing_and_the_fix(tmp_path, changes, words):
    with pytest.raises(ValueError) as caught:
        job(tmp_path, **changes)
    assert words in str(caught.value)


def test_more_memory_than_there_is_is_refused_before_running(tmp_path, monkeypatch):
    from retrobench.engine import loader
    from retrobench.measure import machine

    monkeypatch.setattr(machine, "available_bytes", lambda: 1000)
    monkeypatch.setattr(loader, "load", None)  # no weights are read
    with pytest.raises(ValueError, match="GiB of memory are free; use a smaller task.length"):
        job(tmp_path)
    store = ResultStore(tmp_path)
    (key,) = store.cell_keys()
    assert store.status(key)["state"] == "impossible" and store.status(key)["reason"] == "oom"
    monkeypatch.undo()
    assert job(tmp_path)["failed"] == {} and store.status(key)["state"] == "done"


@pytest.mark.slow
def test_sigkill_in_the_middle_resumes_at_the_next_sample(tmp_path):
    arguments = ["task.tasks=[niah_single_2]", "task.length=1400", "task.samples=8"]
    arguments += [f"results_dir={tmp_path}", "method=full", "model=constructed", "progress=false"]
    child = forks.Command("run.py", *arguments)
    deadline = time.monotonic() + 120
    while not any(len(p.read_bytes().splitlines()) >= 3 for p in tmp_path.glob("*/rows.jsonl")):
        assert child.poll() is None and time.monotonic() < deadline
        time.sleep(0.05)
    child.send_signal(signal.SIGKILL)
    child.wait()
    store = ResultStore(tmp_path)
    kept = len(store.read(store.cell_keys()[0]).rows)
    done = run_py(*arguments)
    assert done.returncode == 0, done.stderr
    assert f"{8 - kept} samples run, {kept} on disk" in done.stdout
    again = run_py(*arguments)
    assert "0 samples run, 8 on disk" in again.stdout


@pytest.mark.slow
def test_a_sweep_gives_one_table_and_survives_a_bad_cell(tmp_path):
    result = run_py(
        "-m",
        "model=constructed",
        "method=retroinfer",
        "task=niah",
        "task.length=1400",
        "task.depths=2",
        "method.num_clusters=64,128,99999",
        f"results_dir={tmp_path}",
        f"hydra.sweep.dir={tmp_path}/sweep",
    )
    assert result.returncode == 1
    assert result.stdout.count("2 samples run") == 2 and result.stdout.count("scores (x100)") == 1
    assert "num_clusters=64" in result.stdout  # the table tells the cells apart
    assert "FAILED" in result.stdout and "num_clusters=99999" in result.stdout


def test_user_errors_end_with_code_2_and_no_traceback(tmp_path):
    arguments = ("method=retroinfr", "budgt=2%", "method.retrieval_frac=18", "task.samples=none")
    for argument in arguments:
        result = run_py(argument, f"results_dir={tmp_path}")
        assert result.returncode == 2 and "Traceback" not in result.stderr
        assert result.stderr.startswith("error:")


def wandb_records(data):
    """Records of a W&B file: a 7-byte header, then LevelDB's log format in 32 KiB blocks."""
    position, parts, block = 7, [], 32768
    while position + 7 <= len(data):
        left = block - position % block
        if left < 7:
            position += left
            continue
        length, kind = (
            int.from_bytes(data[position + 4 : position + 6], "little"),
            data[position + 6],
        )
        if kind == 0:
            return
        parts.append(data[position + 7 : position + 7 + length])
        position += 7 + length
        if kind in (1, 4):  # whole record, or the last part of one
            yield b"".join(parts)
            parts = []


@pytest.mark.slow
def test_wandb_offline_run_is_written_and_resumed(tmp_path):
    pytest.importorskip("wandb")
    from wandb.proto import wandb_internal_pb2 as pb

    options = {"name": "wandb", "dir": str(tmp_path / "track"), "mode": "offline"}
    outcome = job(tmp_path / "runs", tracker=options)
    job(tmp_path / "runs", tracker=options, task={**RULER, "samples": 3})
    files = sorted((tmp_path / "track").glob("wandb/offline-run-*/*.wandb"))
    assert len(files) == 2 and all(outcome["key"] in file.name for file in files)

    def written():
        scores, ids = 0, set()
        for file in files:
            for data in wandb_records(file.read_bytes()):
                record = pb.Record()
                record.ParseFromString(data)
                if record.run.run_id:
                    ids.add(record.run.run_id)
                for item in record.history.item:
                    scores += (item.key or "/".join(item.nested_key)) == "score"
        return scores, ids

    end = time.monotonic() + 30  # W&B's own process may write the last records a little later
    while written()[0] < 6 and time.monotonic() < end:
        time.sleep(0.2)
    assert written() == (6, {outcome["key"]})


def test_console_reads_the_store(tmp_path, capsys):
    from retrobench.cli import console

    key = job(tmp_path)["key"]
    other = job(tmp_path, method={"name": "full"})["key"]
    where = ["--results", str(tmp_path)]
    assert console.main(["ls", *where]) == 0 and key in capsys.readouterr().out
    assert console.main(["table", *where]) == 0 and "retroinfer" in capsys.readouterr().out
    assert console.main(["why", key[:8], other, *where]) == 0
    assert 'method.name: "retroinfer" -> "full"' in capsys.readouterr().out
    assert console.main(["audit", *where]) == 0 and "2 cells agree" in capsys.readouterr().out
    assert console.main(["export", *where, "--out", str(tmp_path / "rows.csv")]) == 0
    with (tmp_path / "rows.csv").open(newline="") as stream:  # prompts hold line breaks
        assert len(list(csv.reader(stream))) == 9
    assert console.main(["export", other, *where, "--out", str(tmp_path / "full.csv")]) == 0
    columns = (tmp_path / "full.csv").read_text().splitlines()[0]
    assert "method.backend" in columns and "method.tokens_per_cluster" not in columns
    assert console.main(["show", key, *where]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert shown["key"] == key and "hardware" not in shown["asked"]


@pytest.mark.slow
def test_figures_are_drawn_from_rows_and_name_them(tmp_path):
    pytest.importorskip("matplotlib")
    from retrobench.report.figures.draw import draw, figure_source

    key = job(tmp_path)["key"]
    grid = {"name": "niah", "length": [1200, 1400], "depths": 2}
    job(tmp_path, task=grid)
    results = {n: (p, r) for n, p, r in draw(ResultStore(tmp_path), tmp_path / "figures")}
    assert results["ruler_scores"][0] and results["niah_grid"][0]
    assert "experiment=cluster_count" in results["cluster_count"][1]
    for suffix in (".png", ".pdf"):
        assert key in figure_source(tmp_path / "figures" / f"ruler_scores{suffix}")
