"""One running cell: its parts, and what became of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from retrobench.core.cell import Cell
from retrobench.core.method import Needs
from retrobench.core.task import Sample, Task
from retrobench.engine import loader
from retrobench.engine.session import Session
from retrobench.measure.clock import make_clock
from retrobench.run.progress import Progress
from retrobench.run.shared import SharedPrefill
from retrobench.run.spec import RunSpec
from retrobench.run.summary import CellResult
from retrobench.store.results import FINAL, RowWriter
from retrobench.tasks.prompt import PromptBuilder
from retrobench.track.base import Tracker

OpenSession = Callable[..., Session]


@dataclass(slots=True)
class RunContext:
    """The parts of one running cell. ``stamp`` (commit, code fingerprint) goes into every row."""

    spec: RunSpec
    cell: Cell
    loaded: loader.Loaded
    prompt: PromptBuilder
    task: Task
    writer: RowWriter
    tracker: Tracker
    progress: Progress
    result: CellResult
    stamp: dict[str, Any] = field(default_factory=dict)

    @property
    def clock(self) -> Callable[[], float]:
        """Seconds, read when the model's device has finished."""
        return make_clock(str(self.loaded.model.device))

    @property
    def needs(self) -> Needs:
        """What the cell's method asks of a prefill."""
        return self.spec.method_class.needs

    def turns(self, sample: Sample) -> tuple[Sample, ...]:
        """What a sample asks in one session, a row each."""
        if self.spec.protocol.name != "multi_turn":
            return (sample,)
        return sample.turns(self.spec.protocol.turns)

    def opener(self, shared: SharedPrefill) -> OpenSession:
        """A function that opens sessions of this cell on a prefilled prompt.

        It takes ``max_new_tokens`` and options of ``Session``; ``method_class`` replaces the
        cell's.
        """
        spec = self.spec

        def open_one(max_new_tokens: int, **options: Any) -> Session:
            prompt, last_use = shared.take()
            settings = {
                "budget": spec.budget,
                "dense_layers": spec.engine.dense_layers,
                "clock": self.clock,
                "last_use": last_use,
                **options,
            }
            method_class = settings.pop("method_class", spec.method_class)
            session = Session(
                self.loaded.model, method_class, spec.method_config, prompt,
                max_new_tokens=max_new_tokens, **settings,
            )  # fmt: skip
            try:
                session.build()
            except BaseException:
                session.close()
                raise
            return session

        return open_one

    def write(self, row: dict[str, Any]) -> None:
        """Put a row on disk, and everywhere that follows the cell."""
        self.writer.append(row)
        self.tracker.row(row)
        self.result.ran += 1
        if row["status"] not in FINAL:
            self.result.failed[row["status"]] = self.result.failed.get(row["status"], 0) + 1
            self.progress.say(f"{row['sample']}: {row['status']}: {row.get('message', '')}")
        self.progress.advance()
