"""``python run.py``: compose with Hydra, run one cell per job, print one table."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra import compose
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.experimental.callback import Callback
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from rich.console import Console

from retrobench.cli.overrides import name_sweep, prepare
from retrobench.store.sweeps import CELLS_FILE

if TYPE_CHECKING:
    from retrobench.run.spec import RunSpec


def launch(hydra_main: Callable[[], None], conf_dir: Path) -> None:
    """Entry of run.py: prepare the command line, then hand over to Hydra."""
    # OpenMP reads it when torch is imported. Threads that spin while they wait take the cores of
    # those that work as soon as anything else runs on the machine: steps get tens of times slower
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    try:
        sys.argv[1:] = name_sweep(prepare(sys.argv[1:], conf_dir))
    except ValueError as error:
        fail(error)
    hydra_main()


def main(config: DictConfig) -> None:
    """One Hydra job. A failure in a sweep becomes an entry of the final report."""
    from retrobench.run.cell import Refused
    from retrobench.run.failures import redact

    sweep = HydraConfig.get().mode == RunMode.MULTIRUN
    raw = OmegaConf.to_container(config, resolve=True)
    try:
        if config.dry_run:
            sys.exit(print_plan([raw]))
        outcome = run_job(raw)
    except KeyboardInterrupt:
        sys.exit(130)
    except Exception as error:
        if not sweep:
            if isinstance(error, ValueError):
                fail(error)
            raise
        overrides = " ".join(HydraConfig.get().overrides.task)
        refused = {"key": error.key} if isinstance(error, Refused) else {}
        _note({"job": overrides, "error": redact(f"{type(error).__name__}: {error}"), **refused})
        return
    if sweep:
        _note(outcome)
        return
    show([outcome], config.results_dir)
    if outcome.get("failed"):
        sys.exit(1)


def run_job(raw: Any) -> dict[str, Any]:
    """Run one composed configuration; the outcome as plain values."""
    from retrobench.run.cell import run_cell
    from retrobench.run.spec import parse_run

    spec, matched = parse_run({k: v for k, v in raw.items() if k != "hydra"}), ""
    if spec.match is not None:
        spec, matched = _match(spec)
    outcome = run_cell(spec)
    return {
        "matched": matched,
        "key": outcome.key,
        "ran": outcome.ran,
        "cached": outcome.cached,
        "failed": outcome.failed,
        "message": outcome.message,
        "label": " ".join(str(outcome.labels[name]) for name in ("model", "method", "benchmark")),
        "notes": list(outcome.notes),
    }


def _match(spec: RunSpec) -> tuple[RunSpec, str]:
    """The run with its knob solved, and the line of the knob table. Runs the reference first."""
    from retrobench.evaluate import matching
    from retrobench.run.cell import run_cell
    from retrobench.store.results import ResultStore

    reference = matching.reference_spec(spec)
    if reference is None:
        key = ResultStore(spec.options.results_dir).find(str(spec.reference))
    else:
        key = run_cell(reference).key
    solved, found = matching.solve(spec, key)
    return solved, found.line


def print_plan(raws: list[Any]) -> int:
    """Print what runs would do; exit code 1 if any is impossible here."""
    from retrobench.measure.machine import available_bytes
    from retrobench.report.tables.plan import print_planned
    from retrobench.run.plan import plan
    from retrobench.run.spec import parse_run

    specs = []
    for raw in raws:
        try:
            specs.append(parse_run({k: v for k, v in raw.items() if k != "hydra"}))
        except ValueError as error:
            names = [str(raw.get(group, {}).get("name")) for group in ("model", "method", "task")]
            specs.append((" ".join(names), error))
    planned = plan(specs)
    print_planned(planned, available_bytes(), console())
    return 1 if any(entry.state == "impossible" for entry in planned) else 0


def console() -> Console:
    """The terminal, or 160 columns where there is none."""
    return Console(width=None if Console().is_terminal else 160)


def fail(error: Exception) -> None:
    """Print a user error and leave with exit code 2."""
    console = Console(stderr=True, soft_wrap=True, highlight=False, markup=False)
    console.print(f"error: {error}", style="red")
    sys.exit(2)


def show(outcomes: list[dict[str, Any]], results_dir: str) -> None:
    """What ran, what was cached, the table of all cells, and what failed."""
    from retrobench.report.tables.overview import COLUMNS, print_tables
    from retrobench.store.results import ResultStore

    out = console()
    for outcome in outcomes:
        if "label" in outcome:
            line = f"{outcome['key']} {outcome['label']}: "
            line += f"{outcome['ran']} samples run, {outcome['cached']} on disk"
            out.print(line, markup=False, highlight=False)
            if outcome.get("matched"):
                text = f"  {outcome['matched']}"
                out.print(text, markup=False, highlight=False, soft_wrap=True)
    keys = list(dict.fromkeys(o["key"] for o in outcomes if "key" in o))
    if keys:
        print_tables(ResultStore(results_dir).columns(COLUMNS, keys), out)
    for outcome in outcomes:
        if line := _failure(outcome):
            out.print(line, markup=False, highlight=False, soft_wrap=True)


def without_twins(outcomes: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Entries of one launch without those that found their cell being run by another of them."""
    ran = {o["key"] for o in outcomes if o.get("ran") and "busy" not in o["failed"]}
    return [o for o in outcomes if "busy" not in o.get("failed", {}) or o["key"] not in ran]


def _failure(outcome: dict[str, Any]) -> str:
    if "error" in outcome:
        return f"FAILED {outcome['job']}: {outcome['error']}"
    if not outcome["failed"]:
        return ""
    counts = ", ".join(f"{kind} {count}" for kind, count in outcome["failed"].items())
    why = f" ({outcome['message']})" if outcome["message"] else ""
    return f"FAILED {outcome['key']} {outcome['label']}: {counts}{why}"


def _note(entry: dict[str, Any]) -> None:
    """Append an entry to the sweep's list; lines are short, so appends of workers do not mix."""
    folder = Path(HydraConfig.get().sweep.dir)
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / CELLS_FILE).open("a", encoding="utf-8") as stream:
        stream.write(json.dumps(entry) + "\n")


TASK_FIGURES = {"speed": "throughput"}  # of sweeps that no experiment describes


class SweepTable(Callback):
    """Plan before a sweep, one table after it; exit code 1 if any cell failed."""

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Print the preflight; ``dry_run`` stops here, before a launcher starts anything."""
        code = print_plan([_compose(overrides) for overrides in jobs(config)])
        if config.dry_run:
            sys.exit(code)

    def on_multirun_end(self, config: DictConfig, **kwargs: Any) -> None:
        """Read what the jobs noted, wherever they ran."""
        path = Path(config.hydra.sweep.dir) / CELLS_FILE
        outcomes = without_twins([json.loads(line) for line in path.read_text().splitlines()])
        show(outcomes, config.results_dir)
        choices = config.hydra.runtime.choices
        if figure := choices.get("experiment") or TASK_FIGURES.get(choices.get("task")):
            _draw(figure, outcomes, Path(config.results_dir))
        if any(_failure(outcome) for outcome in outcomes):
            sys.exit(1)


def _draw(figure: str, outcomes: list[dict[str, Any]], results_dir: Path) -> None:
    """A figure from the sweep's own cells, or why there is none."""
    try:
        from retrobench.report.figures.draw import FIGURES, draw
        from retrobench.store.results import ResultStore

        if figure not in FIGURES:
            return
        keys = list(dict.fromkeys(outcome["key"] for outcome in outcomes if "key" in outcome))
        out = results_dir.parent / "figures"
        for name, drawn, reason in draw(ResultStore(results_dir), out, [figure], keys):
            line = f"figure {name}: {drawn if drawn else 'not drawn, ' + reason}"
            console().print(line, markup=False, highlight=False, soft_wrap=True)
    except ImportError:
        console().print("no figure: pip install 'retrobench[plots]'")


def jobs(config: DictConfig) -> list[list[str]]:
    """Overrides of every job of a sweep, as the basic sweeper will expand them."""
    swept = [f"{name}={value}" for name, value in (config.hydra.sweeper.params or {}).items()]
    overrides = OverridesParser.create().parse_overrides(swept + list(config.hydra.overrides.task))
    return BasicSweeper.split_arguments(overrides, None)[0]


def _compose(overrides: list[str]) -> Any:
    config = compose("config", overrides)
    return OmegaConf.to_container(config, resolve=True)
