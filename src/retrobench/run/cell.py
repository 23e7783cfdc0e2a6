"""Runs one cell: plan -> skip what is done -> run -> rows -> status."""

from __future__ import annotations

import traceback
from pathlib import Path
from typing import Any

from retrobench.core.code import code_fingerprint
from retrobench.engine import loader
from retrobench.measure.clock import utc_now
from retrobench.measure.machine import provenance
from retrobench.run import plan as preflight
from retrobench.run.context import CellRun, Outcome
from retrobench.run.failures import failure, redact
from retrobench.run.plan import Prepared
from retrobench.run.progress import Progress
from retrobench.run.samples import run_batch, turns
from retrobench.run.spec import RunSpec
from retrobench.store.history import summarise
from retrobench.store.results import FINAL, MAX_ATTEMPTS, Locked, ResultStore, RowWriter
from retrobench.track.base import Tracker, make_tracker


class Refused(ValueError):
    """The cell ``key`` cannot run here; the store keeps why."""

    def __init__(self, key: str, message: str) -> None:
        super().__init__(message)
        self.key = key


def run_cell(spec: RunSpec) -> Outcome:
    """Run what is missing of a cell. ValueError for what the user must change.

    Failures of single samples become rows and the cell goes on; a failure of the cell as a whole
    becomes its status.
    """
    store = ResultStore(spec.options.results_dir)
    store.prepare()
    prepared = preflight.prepare(spec)
    key = prepared.cell.key
    outcome = Outcome(key, prepared.labels, notes=prepared.task.notes())
    if preflight.is_done(store, prepared):
        outcome.cached = len(store.read(key).rows)
        return outcome
    if preflight.is_quarantined(store, key) and not spec.options.retry:
        outcome.failed = {"quarantined": 1}
        message = store.status(key).get("message", "")
        outcome.message = f"failed {MAX_ATTEMPTS} times, retry=true tries again: {message}"
        return outcome
    _check(store, prepared)
    tracker = make_tracker(spec.tracker)
    try:
        with store.writer(prepared.cell, _facts(prepared)) as writer:
            _run(prepared, store, writer, tracker, outcome)
    except Locked as error:
        outcome.failed, outcome.message = {"busy": 1}, str(error)
    return outcome


def _check(store: ResultStore, prepared: Prepared) -> None:
    """Refused for what cannot run here; the cell's status keeps the reason."""
    try:
        need = preflight.footprint(prepared)
        preflight.check_memory(prepared, need, weights=not loader.is_resident(prepared.spec.model))
    except ValueError as error:
        if not store.read(prepared.cell.key).rows:
            store.refuse(prepared.cell, _facts(prepared), *failure(error))
        raise Refused(prepared.cell.key, str(error)) from error


def _facts(prepared: Prepared) -> dict[str, Any]:
    spec = prepared.spec
    return {
        "labels": prepared.labels,
        "provenance": {**provenance(), "time": utc_now()},
        "notes": list(prepared.task.notes()),
        "weight_bytes": prepared.described.weight_bytes,
        "asked": spec.asked,
    }


def _run(
    prepared: Prepared, store: ResultStore, writer: RowWriter, tracker: Tracker, outcome: Outcome
) -> None:
    spec, cell = prepared.spec, prepared.cell
    known, status = store.read(cell.key), store.status(cell.key)
    settled = known.settled()
    if spec.options.retry:
        settled = {s for s, r in known.rows.items() if r["status"] in FINAL}
    ended = {"requests": sorted({*status.get("requests", []), prepared.request})}
    with Progress(f"{spec.method} {spec.task}", spec.options.progress) as progress:
        if known.recovered:
            progress.say(f"{cell.key}: {known.recovered} unreadable line(s) skipped and kept aside")
        group = spec.sweep or spec.task
        tracker.start(cell.key, prepared.label, cell.plain(), group, known.lines)
        try:
            loaded = loader.resident(spec.model)
            stamp = {"code": code_fingerprint(spec.method), "commit": provenance()["commit"]}
            run = CellRun(
                spec=spec,
                cell=cell,
                loaded=loaded,
                prompt=prepared.prompt,
                task=prepared.task,
                method=spec.method_class,
                writer=writer,
                tracker=tracker,
                progress=progress,
                outcome=outcome,
                stamp=stamp,
            )
            _run_samples(run, settled, prepared.num_samples)
        except ValueError:
            tracker.finish({"state": "refused"}, [], None)
            raise
        except Exception as error:
            kind, outcome.message = failure(error)
            outcome.failed[kind] = outcome.failed.get(kind, 0) + 1
            ended = {"attempts": status.get("attempts", 0) + 1, "message": outcome.message}
            store.keep(cell.key, "error.txt", redact(traceback.format_exc()))
        state = {"state": outcome.state, "failed": outcome.failed, "time": utc_now()}
        store.set_status(cell.key, {**state, "recovered_lines": known.recovered, **ended})
    followed = spec.tracker.get("name", "none") != "none"
    figures = _figures(store, cell.key) if followed else []
    failed = sum(outcome.failed.values())
    summary = {"state": outcome.state, "failed": failed, **summarise(store, cell.key)}
    tracker.finish(summary, figures, store.root / cell.key / "rows.jsonl")


def _figures(store: ResultStore, key: str) -> list[Path]:
    """Figures of one cell for its tracker; none without matplotlib."""
    try:
        from retrobench.report.figures.draw import draw

        drawn = draw(store, store.root / key / "figures", keys=[key])
    except ImportError:
        return []
    return [path for _, path, _ in drawn if path is not None]


def _run_samples(run: CellRun, settled: set[str], total: int | None) -> None:
    run.progress.total(total)
    pending = []
    run.progress.detail("building prompts")
    for sample in run.task.samples(run.prompt):
        ids = [turn.id for turn in turns(run.spec, sample)]
        if settled.issuperset(ids):
            run.outcome.cached += len(ids)
            run.progress.advance(len(ids))
        else:
            pending.append(sample)
        if len(pending) == run.spec.engine.batch:
            run_batch(run, pending)
            pending = []
            run.progress.detail("building prompts")
    if pending:
        run_batch(run, pending)
