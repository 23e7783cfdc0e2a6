"""Weights & Biases: one run per cell, offline unless a key is at hand."""

import logging
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from retrobench.core.secrets import redact
from retrobench.core.spec import choice, option
from retrobench.store.row_file import read_rows

_COLUMNS = ("sample", "task", "length", "status", "score", "prediction", "references")


@dataclass(frozen=True, kw_only=True)
class WandbConfig:
    """Options of ``tracker=wandb``."""

    project: str = option("retrobench", "W&B project")
    entity: str = option("", "W&B team or user; empty: the default one")
    group: str = option("", "group of the run; empty: the sweep, or the benchmark")
    mode: str = choice(
        ("auto", "online", "offline", "disabled"),
        "auto: online with a key, else offline (sync later with `wandb sync`)",
    )
    dir: str = option("results", "folder that holds the wandb/ files")


class WandbTracker:
    """Run id = cell key, so a resumed cell appends to its run. Its errors never reach the cell."""

    def __init__(self, config: WandbConfig) -> None:
        try:
            import wandb
        except ImportError as error:
            raise ValueError(
                "tracker=wandb needs the package: pip install 'retrobench[wandb]'"
            ) from error
        self._wandb, self._config = wandb, config
        self._run: Any = None
        self._step = 0
        self._failed = False

    def start(
        self, key: str, name: str, config: Mapping[str, Any], group: str | None, done: int = 0
    ) -> None:
        """Open the run, resuming the one of the same key: steps go on after ``done`` rows."""
        mode = chosen_mode(self._config.mode)
        self._step = done
        folder = Path(self._config.dir)

        def open_run() -> None:
            folder.mkdir(parents=True, exist_ok=True)
            self._run = self._wandb.init(
                project=self._config.project,
                entity=self._config.entity or None,
                group=self._config.group or group,
                id=key,
                name=name,
                config=dict(config),
                dir=str(folder),
                mode=mode,
                resume="allow" if mode == "online" else None,
                reinit="create_new",  # cells of a group are followed side by side
                settings=self._wandb.Settings(silent=True),
            )

        self._guard(open_run)

    def row(self, row: Mapping[str, Any]) -> None:
        """Log score and times of one sample."""
        names = ("score", "prefill_s", "seal_s", "decode_s", "prompt_tokens")
        values = {name: row[name] for name in names if row.get(name) is not None}
        values[f"status/{row['status']}"] = 1
        step, self._step = self._step, self._step + 1
        self._guard(lambda: self._run.log(values, step=step))

    def finish(
        self, summary: Mapping[str, Any], figures: list[Path], rows_path: Path | None
    ) -> None:
        """Summary, sample table, figures and the rows as an artifact; closes the run."""

        def close() -> None:
            self._run.summary.update(dict(summary))
            table = self._wandb.Table(columns=list(_COLUMNS), data=_samples(rows_path))
            images = {path.stem: self._wandb.Image(str(path)) for path in figures}
            self._run.log({"samples": table, **images}, step=self._step)
            if rows_path is not None and rows_path.exists():
                artifact = self._wandb.Artifact(f"rows-{self._run.id}", type="rows")
                artifact.add_file(str(rows_path))
                self._run.log_artifact(artifact)
            self._run.finish()

        self._guard(close)

    def _guard(self, action: Callable[[], None]) -> None:
        if self._failed:
            return
        try:
            action()
        except Exception as error:  # a tracker must never hurt the cell
            self._failed = True
            logging.getLogger(__name__).warning("W&B stopped: %s", redact(str(error)))


def chosen_mode(mode: str) -> str:
    """W&B's mode: ``auto`` is what WANDB_MODE says, else online with a key and offline without."""
    if mode != "auto":
        return mode
    return os.environ.get("WANDB_MODE") or (
        "online" if os.environ.get("WANDB_API_KEY") else "offline"
    )


def _samples(rows_path: Path | None) -> list[list[Any]]:
    """The newest row of every sample of the cell, also of earlier runs."""
    rows = read_rows(rows_path).rows.values() if rows_path else []
    return [[_cell(row.get(name)) for name in _COLUMNS] for row in rows]


def _cell(value: Any) -> Any:
    return ", ".join(map(str, value)) if isinstance(value, list) else value
