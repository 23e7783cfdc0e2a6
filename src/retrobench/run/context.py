"""One running cell: its parts, and what became of it."""

from collections.abc import Callable
from functools import cached_property
from typing import Any

from retrobench.core.code import code_fingerprint
from retrobench.core.method import Method
from retrobench.core.task import Sample
from retrobench.engine import loader
from retrobench.engine.session import Session, built_session
from retrobench.measure.clock import make_clock
from retrobench.measure.machine import provenance, use_device
from retrobench.run.plan import PreparedRun
from retrobench.run.progress import Progress
from retrobench.run.shared import SharedPrefill
from retrobench.run.summary import CellResult
from retrobench.store.row_file import FINAL, FINE, RowWriter
from retrobench.track.base import Tracker

OpenSession = Callable[..., Session]  # ``RunContext.open_session`` on a prompt


class RunContext:
    """A prepared run with its model, if its task needs one, and everything that its rows go to.

    ``stamp`` (code fingerprint, commit, warnings about the model) is in every row.
    """

    def __init__(
        self,
        prepared: PreparedRun,
        writer: RowWriter,
        tracker: Tracker,
        progress: Progress,
        result: CellResult,
    ) -> None:
        self.spec, self.cell = prepared.spec, prepared.cell
        self.prompt, self.task = prepared.prompt, prepared.task
        self.writer, self.tracker, self.progress = writer, tracker, progress
        self.result = result
        if self.task.model_identity() is None:
            if not loader.is_resident(self.spec.model):
                progress.detail("loading the model")
            self.device = str(self.loaded.model.device)
        else:  # it brings keys and values of its own
            self.device = loader.describe(self.spec.model).device
        use_device(self.device)
        self.stamp: dict[str, Any] = {
            "code": code_fingerprint(self.spec.method),
            "commit": provenance()["commit"],
        }
        if prepared.summary.ignored:
            self.stamp["ignored"] = prepared.summary.ignored
        if warnings := loader.describe(self.spec.model).warnings:
            self.stamp["model_warnings"] = list(warnings)

    @cached_property
    def loaded(self) -> loader.Loaded:
        """The model with its weights."""
        return loader.resident(self.spec.model)

    @property
    def clock(self) -> Callable[[], float]:
        """Seconds, read when the model's devices have finished."""
        return make_clock(*loader.model_devices(self.loaded.model))

    def turns(self, sample: Sample) -> tuple[Sample, ...]:
        """What a sample asks in one session, a row each."""
        if self.spec.protocol.name != "multi_turn":
            return (sample,)
        return sample.turns(self.spec.protocol.turns)

    def open_session(
        self,
        shared: SharedPrefill,
        max_new_tokens: int,
        method_class: type[Method] | None = None,
        rest: list[int] | None = None,
        **options: Any,
    ) -> Session:
        """A session of this cell on a prefilled prompt, with further options of ``Session``.

        ``method_class`` replaces the cell's, ``rest`` what follows the prefilled context.
        """
        prompt, last_use = shared.take()
        if rest is not None:
            prompt = prompt.continued(rest)
        return built_session(
            self.loaded.model,
            method_class or self.spec.method_class,
            self.spec.method_config,
            prompt,
            max_new_tokens=max_new_tokens,
            budget=self.spec.budget,
            dense_layers=self.spec.engine.dense_layers,
            clock=self.clock,
            last_use=last_use,
            **options,
        )

    def write(self, row: dict[str, Any]) -> None:
        """Put a row on disk, and everywhere that follows the cell."""
        self.writer.append(row)
        self.tracker.row(row)
        self.result.ran += 1
        if row["status"] not in FINE:
            self.result.failed[row["status"]] = self.result.failed.get(row["status"], 0) + 1
            self.result.message = self.result.message or row.get("message", "")  # of the first
        if row["status"] not in FINAL:
            self.progress.say(f"{row['sample']}: {row['status']}: {row.get('message', '')}")
        self.progress.advance()
