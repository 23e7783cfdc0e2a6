"""Trackers: an interface with a null object, so that no caller ever tests for one."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from retrobench.core.spec import parse, unknown


class Tracker(Protocol):
    """Follows one cell. The methods do nothing unless a subclass says more."""

    def start(
        self, key: str, name: str, config: Mapping[str, Any], group: str | None, done: int = 0
    ) -> None:
        """A cell begins, or resumes after ``done`` rows."""

    def row(self, row: Mapping[str, Any]) -> None:
        """One sample is done."""

    def finish(
        self, summary: Mapping[str, Any], figures: list[Path], rows_path: Path | None
    ) -> None:
        """The cell ended."""


class NullTracker(Tracker):
    """Follows nothing."""


def make_tracker(options: Mapping[str, Any]) -> Tracker:
    """The tracker named by ``tracker=``; ValueError for an unknown one."""
    values = dict(options)
    name = str(values.pop("name", "none"))
    if name == "none":
        return NullTracker()
    if name == "wandb":
        from retrobench.track.wandb import WandbConfig, WandbTracker

        return WandbTracker(parse(WandbConfig, values, "tracker"))
    raise unknown(f"tracker={name}", "tracker", ("none", "wandb"))
