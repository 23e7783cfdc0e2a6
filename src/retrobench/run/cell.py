"""One cell between its lock and its status: what is done, what runs, how it ended."""

import traceback
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from retrobench_kernels.dispatch import prepare as prepare_kernels

from retrobench.core.secrets import redact
from retrobench.core.task import Sample
from retrobench.engine import loader
from retrobench.measure.clock import utc_now
from retrobench.measure.machine import provenance
from retrobench.run.context import RunContext
from retrobench.run.failures import failure
from retrobench.run.plan import PreparedRun
from retrobench.run.progress import Progress
from retrobench.run.summary import CellResult, attempts, check_memory
from retrobench.store.history import summarise
from retrobench.store.results import Locked, ResultStore
from retrobench.store.row_file import FINAL
from retrobench.track.base import NullTracker, Tracker, make_tracker


class Refused(ValueError):
    """The cell ``key`` cannot run here; the store keeps why."""

    def __init__(self, key: str, message: str) -> None:
        super().__init__(message)
        self.key = key


class OpenCell:
    """A cell that is being run: ``open`` takes its lock, ``finish`` and ``fail`` write its status.

    ``run`` is there while samples may run. ``error`` is what the user must change: ``Refused`` for
    what cannot run here, where the cell's status keeps the reason. A cell that another process
    runs is ``busy`` and stays closed.
    """

    def __init__(self, store: ResultStore, prepared: PreparedRun, progress: Progress) -> None:
        self.store, self.prepared, self.progress = store, prepared, progress
        self.result = CellResult.of(prepared.summary, prepared.matched)
        self.error: Exception | None = None
        self.run: RunContext | None = None
        self.tracker: Tracker = NullTracker()
        self._stack = ExitStack()
        self._look()
        is_new = self._status["state"] == "new"
        self._intact = None if is_new else store.is_intact(prepared.cell.key)

    def _look(self) -> None:
        """What is on disk. Another process may write until the lock is ours."""
        self._known = self.store.read(self.prepared.cell.key)
        self._status = self.store.status(self.prepared.cell.key)
        self._recovered = self._status.get("recovered_lines", 0)
        self._altered = self._status.get("altered", 0)
        self._settled = self._known.settled()
        if self.prepared.spec.options.retry:
            known = self._known.rows.items()
            self._settled = {sample for sample, row in known if row["status"] in FINAL}

    def open(self) -> None:
        """Check, lock, load the model, start the tracker."""
        prepared, spec, key = self.prepared, self.prepared.spec, self.prepared.cell.key
        try:
            self._check()
            tracker = make_tracker(spec.tracker)
            writer = self._stack.enter_context(self.store.writer(prepared.cell, _about(prepared)))
        except Locked as error:
            self.result.failed, self.result.message = {"busy": 1}, str(error)
            return
        except Exception as error:
            self.error = error
            return
        self._look()
        self._report_damage()
        self.tracker = tracker
        group = spec.sweep or spec.task
        tracker.start(key, prepared.summary.label, prepared.cell.plain(), group, self._known.lines)
        try:
            prepare_kernels(prepared.summary.device)
            self.run = RunContext(prepared, writer, tracker, self.progress, self.result)
        except Exception as error:
            self._failed(error)

    def _report_damage(self) -> None:
        """Say what is not as the last run left it. What is missing runs again."""
        key, known = self.prepared.cell.key, self._status.get("content")
        changed = self._intact is False
        if self._status["state"] == "unreadable":
            self.progress.say(f"{key}: {self._status['message']}")
        if changed:
            self._altered += 1
            self.progress.say(
                f"{key}: its files changed since it ended; missing and damaged rows run again, "
                f"`retrobench audit {key}` and `retrobench verify {key}` check the others"
            )
        if len(self._known.damaged) > (0 if changed or not known else self._recovered):
            lines = (
                f"{len(self._known.damaged)} damaged line(s) left out ({self._known.damaged[0]})"
            )
            self.progress.say(f"{key}: {lines}")

    def _check(self) -> None:
        prepared = self.prepared
        try:
            if prepared.summary.refusal:
                raise ValueError(prepared.summary.refusal)
            resident = loader.is_resident(prepared.spec.model)
            check_memory(prepared.summary, prepared.summary.footprint, weights=not resident)
        except ValueError as error:
            if not self._known.rows:
                self.store.refuse(prepared.cell, _about(prepared), *failure(error))
            raise Refused(prepared.cell.key, str(error)) from error

    def wants(self, sample: Sample) -> bool:
        """Whether the sample must still run; counts it if not."""
        if self.run is None:
            return False
        turns = self.run.turns(sample)
        if not self._settled.issuperset(turn.id for turn in turns):
            return True
        self.result.cached += len(turns)
        self.progress.advance(len(turns))
        return False

    def fail(self, error: Exception) -> None:
        """The cell as a whole failed: no more samples run."""
        if self.run is not None:
            self._failed(error)

    def _failed(self, error: Exception) -> None:
        self.run = None
        if isinstance(error, ValueError):
            self.error = error
            self.tracker.finish({"state": "refused"}, [], None)
            self._stack.close()
            return
        kind, self.result.message = failure(error)
        self.result.failed[kind] = self.result.failed.get(kind, 0) + 1
        asked = self.prepared.summary.asked
        count = attempts(self._status, asked) + 1
        trace = "".join(traceback.format_exception(error))
        self.store.keep(self.prepared.cell.key, "error.txt", redact(trace))
        failed = {"attempts": count, "attempts_of": asked}
        self._end({**failed, "message": self.result.message})

    def finish(self) -> None:
        """All samples ran: write the status."""
        if self.run is None:
            return
        requests = {*self._status.get("requests", []), self.prepared.summary.request}
        self._end({"requests": sorted(requests)})

    def _end(self, ended: dict[str, Any]) -> None:
        result, key = self.result, self.prepared.cell.key
        state = {"state": result.state, "failed": result.failed, "time": utc_now()}
        about = {"recovered_lines": len(self._known.damaged)}
        about |= {"altered": self._altered} if self._altered else {}
        self.store.set_status(key, {**state, **about, **ended})
        self._stack.close()
        followed = self.prepared.spec.tracker.get("name", "none") != "none"
        figures = _figures(self.store, key) if followed else []
        failed = sum(result.failed.values())
        summary = {"state": result.state, "failed": failed, **summarise(self.store, key)}
        self.tracker.finish(summary, figures, self.store.root / key / "rows.jsonl")
        self.run = None

    def release(self) -> None:
        """Give the lock back, whatever happened."""
        self._stack.close()


def _about(prepared: PreparedRun) -> dict[str, Any]:
    spec = prepared.spec
    return {
        "labels": prepared.summary.labels,
        "provenance": {**provenance(), "time": utc_now()},
        "notes": list(prepared.summary.notes),
        "weight_bytes": prepared.summary.weight_bytes,
        "asked": spec.requested_config,
    }


def _figures(store: ResultStore, key: str) -> list[Path]:
    """Figures of one cell for its tracker; none without matplotlib."""
    try:
        from retrobench.report.figures.draw import draw

        drawn = draw(store, store.root / key / "figures", keys=[key])
    except ImportError:
        return []
    return [path for _, path, _ in drawn if path is not None]
