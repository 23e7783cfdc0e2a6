"""The parts of a running cell, and what became of it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from retrobench.core.cell import Cell
from retrobench.core.method import Method
from retrobench.core.task import Task
from retrobench.engine import loader
from retrobench.run.progress import Progress
from retrobench.run.spec import RunSpec
from retrobench.store.results import RowWriter
from retrobench.tasks.prompt import PromptBuilder
from retrobench.track.base import Tracker


@dataclass(slots=True)
class Outcome:
    """What became of one cell."""

    key: str
    labels: dict[str, Any]
    ran: int = 0
    cached: int = 0
    failed: dict[str, int] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    message: str = ""  # why the cell as a whole failed

    @property
    def state(self) -> str:
        """``done``, or ``failed`` if any sample failed."""
        return "failed" if self.failed else "done"


@dataclass(slots=True)
class CellRun:
    """The parts of one running cell. ``stamp`` (commit, code fingerprint) goes into every row."""

    spec: RunSpec
    cell: Cell
    loaded: loader.Loaded
    prompt: PromptBuilder
    task: Task
    method: type[Method]
    writer: RowWriter
    tracker: Tracker
    progress: Progress
    outcome: Outcome
    stamp: dict[str, Any] = field(default_factory=dict)
