"""A sweep's beginning and end: the plan before the first job, one table after the last."""

import contextlib
import json
import sys
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from hydra import compose
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.experimental.callback import Callback
from omegaconf import DictConfig, OmegaConf

from retrobench.cli import app, units
from retrobench.core.secrets import redact
from retrobench.measure.clock import utc_now
from retrobench.report.tables.layout import print_line
from retrobench.run.composed import check_composed
from retrobench.store.results import ResultStore
from retrobench.store.sweeps import CELLS_FILE, PLAN_FILE, read_entries

TASK_FIGURES = {"speed": "throughput", "serve": "serving"}  # of sweeps that no experiment describes


@contextlib.contextmanager
def _no_warning() -> Iterator[None]:
    """Hydra makes a warning of an error in a callback and goes on: end with exit code 1 instead."""
    try:
        with app.one_line_errors():
            yield
    except Exception:
        traceback.print_exc()
        sys.exit(1)


class SweepTable(Callback):
    """Plan before a sweep, one table after it; exit code 1 if any cell failed."""

    @_no_warning()
    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Print the preflight; ``dry_run`` stops here, before a launcher starts anything."""
        overrides = jobs(config)
        raws: list[Any] = [
            OmegaConf.to_container(compose("config", job), resolve=True) for job in overrides
        ]
        for raw in raws:
            check_composed(raw)
        if not config.dry_run:
            ResultStore(config.results_dir).prepare()
        planned = app.plan_runs(raws)
        code = app.show_plan(planned)
        if config.dry_run:
            sys.exit(code)
        groups = [
            f"{entry.group} {raw['results_dir']}" if entry.group else ""
            for entry, raw in zip(planned, raws, strict=True)
        ]
        names = [" ".join(job) for job in overrides]
        folder, workers = Path(config.hydra.sweep.dir), units.parallel_jobs(config)
        units.write(folder, groups, names, raws, workers)
        cells = [
            {"key": entry.key, "label": redact(entry.label), "todo": entry.todo}
            for entry in planned
            if entry.state == "run"
        ]
        plan = {"started": utc_now(), "cells": cells}
        (folder / PLAN_FILE).write_text(json.dumps(plan), encoding="utf-8")

    @_no_warning()
    def on_multirun_end(self, config: DictConfig, **kwargs: Any) -> None:
        """Read what the jobs noted, wherever they ran."""
        path = Path(config.hydra.sweep.dir) / CELLS_FILE
        entries, problems = read_entries(path) if path.exists() else ([], [])
        outcomes = app.without_duplicates(entries)
        silent = len(jobs(config)) - len(entries)
        app.complain(problems)
        app.show(outcomes, config.results_dir)
        choices = config.hydra.runtime.choices
        if figure := choices.get("experiment") or TASK_FIGURES.get(choices.get("task")):
            _draw(figure, outcomes, Path(config.results_dir))
        if silent > 0:
            text = f"FAILED: {silent} job(s) ended without a result; the same command continues"
            print_line(app.console(), text)
        if silent > 0 or any(app.is_failure(outcome) for outcome in outcomes):
            sys.exit(1)


def _draw(figure: str, outcomes: list[app.JobResult], results_dir: Path) -> None:
    """A figure from the sweep's own cells, or why there is none."""
    console = app.console()
    try:
        from retrobench.report.figures.draw import FIGURES, draw

        if figure not in FIGURES:
            return
        keys = list(dict.fromkeys(outcome["key"] for outcome in outcomes if "key" in outcome))
        out = results_dir.parent / "figures"
        for name, drawn, reason in draw(ResultStore(results_dir), out, [figure], keys):
            print_line(console, f"figure {name}: {drawn if drawn else 'not drawn, ' + reason}")
    except OSError as error:
        print_line(console, f"no figure: {error.filename}: {error.strerror}")
    except ImportError:
        console.print("no figure: pip install 'retrobench[plots]'")


def jobs(config: DictConfig) -> list[list[str]]:
    """Overrides of every job of a sweep, as the basic sweeper will expand them."""
    swept = [f"{name}={value}" for name, value in (config.hydra.sweeper.params or {}).items()]
    overrides = OverridesParser.create().parse_overrides(swept + list(config.hydra.overrides.task))
    return BasicSweeper.split_arguments(overrides, None)[0]
