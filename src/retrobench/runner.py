"""Runs one cell: plan -> skip what is done -> run -> rows -> status."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import Any

from retrobench.calibrate import calibrated
from retrobench.core.cell import Cell, digest
from retrobench.core.registry import method_class
from retrobench.core.shapes import Footprint
from retrobench.core.spec import changed, to_plain
from retrobench.engine import loader
from retrobench.engine.session import kv_shape
from retrobench.measure.clock import utc_now
from retrobench.measure.machine import available_bytes, provenance
from retrobench.report.progress import Progress
from retrobench.runspec import RunSpec
from retrobench.samples import CellRun, Outcome, run_batch
from retrobench.store.results import FINAL, ResultStore
from retrobench.tasks.prompt import PromptBuilder
from retrobench.track.base import make_tracker

_ANSWER_TOKENS = 128  # room that preflight plans for an answer


def run_cell(spec: RunSpec) -> Outcome:
    """Run what is missing of a cell. ValueError for what the user must change.

    Failures of single samples become rows; the cell goes on.
    """
    store = ResultStore(spec.options.results_dir)
    store.prepare()
    loaded = _load(spec.model)
    prompt = PromptBuilder(loaded.tokenizer, chat=spec.model.chat)
    task, method = spec.make_task(), method_class(spec.method)
    footprint = preflight(spec, loaded)
    cell = make_cell(spec, loaded, task.fingerprint(prompt), calibrated(spec, loaded))
    labels = {
        "model": loaded.identity["name"],
        "method": spec.method,
        "changed": changed(spec.method_config),
        "benchmark": spec.task,  # rows carry the sub-task as `task`
        "protocol": spec.protocol.name,
        "measure": ",".join(spec.measure.parts),
        "budget": None if spec.budget is None else str(spec.budget),
    }
    outcome = Outcome(cell.key, labels, notes=task.notes())
    request = digest({"task": to_plain(spec.task_config)})
    known = store.read(cell.key)
    settled = {s for s, r in known.rows.items() if r["status"] in FINAL}
    if not spec.options.retry:
        settled = known.settled()
    status = store.status(cell.key)
    if status.get("state") == "done" and request in status.get("requests", []):
        outcome.cached = len(known.rows)
        return outcome
    if spec.options.dry_run:
        mebibytes = footprint.total / 2**20
        outcome.planned = f"{len(settled)} samples on disk, up to {mebibytes:.0f} MiB per session"
        return outcome
    tracker = make_tracker(spec.tracker)
    facts = {
        "labels": labels,
        "provenance": {**provenance(), "time": utc_now()},
        "notes": list(task.notes()),
        "recovered_lines": known.recovered,
    }
    with (
        store.writer(cell, facts) as writer,
        Progress(f"{spec.method} {spec.task}", spec.options.progress) as progress,
    ):
        if known.recovered:
            progress.say(f"{cell.key}: {known.recovered} unreadable line(s) skipped and kept aside")
        tracker.start(cell.key, f"{spec.method}-{spec.task}", cell.plain(), spec.task)
        run = CellRun(spec, cell, loaded, prompt, task, method, writer, tracker, progress, outcome)
        _run_samples(run, settled)
        requests = sorted({*status.get("requests", []), request})
        state = {"state": outcome.state, "failed": outcome.failed, "time": utc_now()}
        store.set_status(cell.key, {**state, "requests": requests})
    folder = store.root / cell.key
    figures = _figures(store, cell.key) if spec.tracker.get("name", "none") != "none" else []
    summary = {"state": outcome.state, "failed": sum(outcome.failed.values())}
    tracker.finish(summary, figures, folder / "rows.jsonl")
    return outcome


def _figures(store: ResultStore, key: str) -> list[Path]:
    """Figures of one cell for its tracker; none without matplotlib."""
    try:
        from retrobench.report.plots import draw

        drawn = draw(store, store.root / key / "figures", keys=[key])
    except ImportError:
        return []
    return [path for _, path, _ in drawn if path is not None]


def make_cell(
    spec: RunSpec, loaded: loader.Loaded, fingerprint: str, calibration: str | None = None
) -> Cell:
    """The cell of a run; the number of samples asked for is left out of the key."""
    task = {k: v for k, v in to_plain(spec.task_config).items() if k != "samples"}
    protocol = spec.protocol.name
    if protocol == "decode_tail":
        protocol = f"decode_tail:{spec.protocol.tail_tokens}"
    made = {} if calibration is None else {"calibration": calibration}
    return Cell(
        model=loaded.identity,
        method={"name": spec.method, **to_plain(spec.method_config), **made},
        task={"name": spec.task, "fingerprint": fingerprint, **task},
        engine=to_plain(spec.engine),
        protocol=protocol,
        measure=spec.measure.parts,
        budget=None if spec.budget is None else str(spec.budget),
    )


@lru_cache(maxsize=1)
def _load(config: loader.ModelConfig) -> loader.Loaded:
    """The last model stays loaded across the cells of one process."""
    return loader.load(config)


def preflight(spec: RunSpec, loaded: loader.Loaded) -> Footprint:
    """Bytes of the largest session; ValueError for what cannot work, before anything runs.

    Checked: context length against the model, budget and method options against every length,
    predicted bytes against free memory.
    """
    lengths = getattr(spec.task_config, "length", ())
    limit, largest = loaded.context_limit, Footprint()
    for length in lengths if isinstance(lengths, tuple) else (lengths,):
        if limit is not None and length > limit:
            raise ValueError(
                f"task.length={length} is longer than the context of model "
                f"{loaded.identity['name']} ({limit} tokens); use a shorter task.length or "
                "another model"
            )
        shape = kv_shape(loaded.model, (0,) * spec.engine.batch, length, _ANSWER_TOKENS)
        plan = method_class(spec.method).plan(spec.method_config, shape, spec.budget)
        largest = max(largest, plan, key=lambda footprint: footprint.total)
    free, need = available_bytes(), largest.pinned + largest.host
    if str(loaded.model.device) == "cpu":
        need = largest.total
    if free and need > free:
        raise ValueError(
            f"method={spec.method} needs {need / 2**30:.1f} GiB for its KV cache but only "
            f"{free / 2**30:.1f} GiB of memory are free; use a shorter task.length or engine.batch"
        )
    return largest


def _run_samples(run: CellRun, settled: set[str]) -> None:
    run.progress.total(_num_samples(run.spec.task_config))
    pending = []
    for sample in run.task.samples(run.prompt):
        if sample.id in settled:
            run.outcome.cached += 1
            run.progress.advance()
        else:
            pending.append(sample)
        if len(pending) == run.spec.engine.batch:
            run_batch(run, pending)
            pending = []
    if pending:
        run_batch(run, pending)


def _num_samples(config: Any) -> int | None:
    """Samples of a task, where its options say so."""
    count = getattr(config, "samples", None)
    if not count:
        return None
    for name in ("tasks", "length", "depths"):
        values = getattr(config, name, None)
        if isinstance(values, tuple) and values:
            count *= len(values)
        elif isinstance(values, int) and name == "depths":
            count *= values
    return count
