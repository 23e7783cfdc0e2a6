"""``python run.py``: compose with Hydra, run one cell per job, print one table."""

import contextlib
import io
import os
import shutil
import signal
import sys
import textwrap
import traceback
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from rich.console import Console

from retrobench.cli import units
from retrobench.cli.environment import set_environment
from retrobench.cli.overrides import KEPT, name_sweep, one_line, prepare
from retrobench.core.secrets import redact
from retrobench.core.words import counted
from retrobench.report.tables.layout import print_line
from retrobench.run import plan_cache
from retrobench.run.composed import check_composed, given_label
from retrobench.run.summary import CellResult, PlannedRun, plan_run, settled
from retrobench.store.results import ResultStore

say = partial(print, flush=True)  # seen at once, wherever the output goes
JobResult = dict[str, Any]  # of one job, as it is noted: a cell's result, or ``job`` and ``error``


def launch(conf_dir: Path) -> None:
    """Entry of run.py: prepare the command line, then hand over to Hydra."""
    set_environment()
    completes = {"-sc", "--shell-completion"} & set(sys.argv[1:])  # its options are not ours
    try:
        sys.argv[1:] = sys.argv[1:] if completes else name_sweep(prepare(sys.argv[1:], conf_dir))
    except ValueError as error:
        fail(error)
    run = hydra.main(version_base="1.3", config_path=str(conf_dir), config_name="config")(main)
    traced = os.environ.get("HYDRA_FULL_ERROR") == "1"
    os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra raises what it would print
    with one_line_errors(traced), _wrapped_help():
        run()


@contextlib.contextmanager
def _wrapped_help() -> Iterator[None]:
    """Hydra writes each list of choices as one line: fold what is too wide for the terminal."""
    if not {"--help", "-h", "--hydra-help"} & set(sys.argv[1:]):
        yield
        return
    width, text = shutil.get_terminal_size().columns, io.StringIO()
    fold = textwrap.TextWrapper(width, subsequent_indent="    ", break_on_hyphens=False).fill
    try:
        with contextlib.redirect_stdout(text):
            yield
    finally:
        print("\n".join(map(fold, text.getvalue().splitlines())))  # noqa: T201


@contextlib.contextmanager
def one_line_errors(traced: bool = False) -> Iterator[None]:
    """Errors of the user or the system, and signals, become one line and an exit code.

    ``traced`` (run.py: ``HYDRA_FULL_ERROR=1``) shows where an error comes from.
    """
    before = signal.signal(signal.SIGTERM, _terminate)
    if signal.getsignal(signal.SIGINT) is signal.SIG_DFL:  # run.py, while it imports
        signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        yield
    except KeyboardInterrupt as stop:
        _say_stopped("SIGTERM" if isinstance(stop, _Terminated) else "Ctrl-C")
        sys.exit(143 if isinstance(stop, _Terminated) else 130)
    except Exception as error:
        if traced:
            raise
        if isinstance(error, (HydraException, OmegaConfBaseException, OSError)):
            fail(ValueError(one_line(error)))
        if _is_of_hydra(error):
            fail(ValueError(f"{_NOT_COMPOSED}: {type(error).__name__}: {one_line(error)}"))
        if isinstance(error, ValueError):
            fail(error)
        if type(error).__name__ in _DEAD_WORKER:
            fail(ValueError(_WORKER_DIED))
        raise
    finally:
        signal.signal(signal.SIGTERM, before)


def _is_of_hydra(error: Exception) -> bool:
    """Whether Hydra itself failed: some overrides that it cannot use end so."""
    frames = traceback.extract_tb(error.__traceback__)
    return bool(frames) and bool({"hydra", "omegaconf"} & {*Path(frames[-1].filename).parts})


_NOT_COMPOSED = "Hydra cannot use these overrides (write GROUP=NAME and GROUP.OPTION=VALUE)"
_DEAD_WORKER = ("TerminatedWorkerError", "BrokenProcessPool")  # of joblib, which is optional
_WORKER_DIED = (
    "a worker process died (killed, or out of memory), and joblib ended the others; finished "
    "samples are kept: the same command goes on, a smaller hydra.launcher.n_jobs takes less memory"
)


class _Terminated(KeyboardInterrupt):
    """SIGTERM, as a batch system sends it before it kills."""


def _terminate(number: int, frame: object) -> None:
    raise _Terminated


def _say_stopped(by: str) -> None:
    print(f"stopped by {by}: {KEPT}", file=sys.stderr)  # noqa: T201


def main(config: DictConfig) -> None:
    """One Hydra job. A failure in a sweep becomes an entry of the final report.

    A job of a sweep runs the cells that it leads: its own, and those that share its prefill.
    """
    job, raw = HydraConfig.get(), OmegaConf.to_container(config, resolve=True)
    folder = Path(job.sweep.dir)
    try:
        if config.dry_run:
            sys.exit(show_plan(plan_runs([raw])))
        if job.mode != RunMode.MULTIRUN:
            (outcome,) = run_jobs([raw])
            if isinstance(outcome, Exception):
                raise outcome
            if config.sweep:  # by name: the cell joins it
                units.note(folder, outcome)
            show([outcome], config.results_dir)
            sys.exit(1 if is_failure(outcome) else 0)
        number = int(job.job.num)
        overrides = " ".join(job.overrides.task)
        unit = units.find(folder, number) or units.Unit(
            jobs=(number,), overrides=(overrides,), configs=(raw,)
        )
        if unit.jobs[0] != number:
            return
        for name, outcome in zip(unit.overrides, run_jobs(unit.configs), strict=True):
            units.note(folder, _error(name, outcome) if isinstance(outcome, Exception) else outcome)
    except ValueError as error:
        fail(error)
    except OSError as error:  # Hydra would print all overrides first
        fail(ValueError(one_line(error)))


def _error(job: str, error: Exception) -> JobResult:
    from retrobench.run.cell import Refused

    refused = {"key": error.key} if isinstance(error, Refused) else {}
    return {"job": job, "error": redact(f"{type(error).__name__}: {error}"), **refused}


def run_jobs(raws: Sequence[Any]) -> list[JobResult | Exception]:
    """Run composed configurations; the outcome of each as plain values, or its error.

    Cells that are known to be done are answered from disk alone.
    """
    found: dict[int, CellResult | Exception] = {}
    for number, raw in enumerate(raws):
        try:
            check_composed(raw)
        except ValueError as error:
            found[number] = error
            continue
        summary = plan_cache.find(raw)
        store = ResultStore(raw.get("results_dir", "results/runs"))
        if summary is not None and (result := settled(summary, store, bool(raw.get("retry")))):
            found[number] = result
    if numbers := [number for number in range(len(raws)) if number not in found]:
        from retrobench.run.group import run_cells

        found |= zip(numbers, run_cells([raws[number] for number in numbers]), strict=True)
    results = [found[number] for number in range(len(raws))]
    return [one if isinstance(one, Exception) else one.plain() for one in results]


def run_job(raw: Any) -> JobResult:
    """Run one composed configuration; its error is raised."""
    (outcome,) = run_jobs([raw])
    if isinstance(outcome, Exception):
        raise outcome
    return outcome


def plan_runs(raws: Sequence[Any]) -> list[PlannedRun]:
    """What runs would do. The same cell twice in one sweep runs once."""
    planned: list[PlannedRun] = []
    seen: set[tuple[str, str]] = set()
    for raw in raws:
        entry = _plan_one(raw)
        if entry.key and entry.state == "run" and (entry.key, str(entry.todo)) in seen:
            entry.state = "cached"
        seen.add((entry.key, str(entry.todo)))
        planned.append(entry)
    return planned


def _plan_one(raw: Any) -> PlannedRun:
    check_composed(raw)
    summary = plan_cache.find(raw)
    if summary is None:
        from retrobench.run.plan import plan_summary
        from retrobench.run.spec import parse_run

        try:
            summary, final = plan_summary(parse_run(raw))
        except ValueError as error:
            return PlannedRun(label=given_label(raw), state="impossible", message=str(error))
        if final:
            plan_cache.keep(raw, summary)
    store = ResultStore(raw.get("results_dir", "results/runs"))
    return plan_run(summary, store, bool(raw.get("retry")))


def show_plan(planned: Sequence[PlannedRun]) -> int:
    """Print what runs would do; exit code 1 if any is impossible here."""
    from retrobench.measure.machine import available_bytes
    from retrobench.report.tables.plan import print_planned

    print_planned(planned, available_bytes(), console())
    return 1 if any(entry.state == "impossible" for entry in planned) else 0


def console() -> Console:
    """The terminal, as wide as it is or as ``COLUMNS`` says; 160 columns where there is neither."""
    known = Console().is_terminal or os.environ.get("COLUMNS", "").isdigit()
    return Console(width=None if known else 160)


def complain(problems: Sequence[str]) -> None:
    """Warn of damaged files on stderr; the rest of their content is still shown."""
    for line in problems:
        print_line(Console(stderr=True), f"warning: {line}", "yellow")


def fail(error: Exception) -> None:
    """Print a user error and leave with exit code 2."""
    print_line(Console(stderr=True), redact(f"error: {error}"), "red")
    sys.exit(2)


def show(outcomes: list[JobResult], results_dir: str) -> None:
    """What ran, what was cached, the table of all cells, and what failed."""
    from retrobench.report.headroom import load
    from retrobench.report.tables.overview import COLUMNS, print_tables

    out = console()
    for outcome in outcomes:
        if "label" in outcome:
            counts = f"{counted(outcome['ran'], 'sample')} run, {outcome['cached']} on disk"
            print_line(out, f"{outcome['key']} {outcome['label']}: {counts}")
            if outcome.get("matched"):
                print_line(out, f"  {outcome['matched']}")
            if outcome.get("ignored"):
                print_line(out, f"  note: {outcome['ignored']}")
    keys = list(dict.fromkeys(o["key"] for o in outcomes if "key" in o))
    if keys:
        print_tables(load(ResultStore(results_dir), COLUMNS, keys), out)
    for outcome in outcomes:
        if line := problem_line(outcome):
            print_line(out, line)


def without_duplicates(outcomes: list[JobResult]) -> list[JobResult]:
    """Entries of one launch without those whose cell another entry of it was running."""
    ran = {o["key"] for o in outcomes if o.get("ran") and "busy" not in o["failed"]}
    return [o for o in outcomes if "busy" not in o.get("failed", {}) or o["key"] not in ran]


def is_failure(outcome: JobResult) -> bool:
    """Whether something of a job failed; a cell that another process runs has not."""
    return "error" in outcome or bool(outcome.get("failed", {}).keys() - {"busy"})


def problem_line(outcome: JobResult) -> str:
    """What failed of a job, or who runs its cell, as one line; empty if all is well."""
    if "error" in outcome:
        return f"FAILED {outcome['job']}: {outcome['error']}"
    if not outcome["failed"]:
        return ""
    if not is_failure(outcome):
        return f"BUSY {outcome['key']} {outcome['label']}: {outcome['message']}"
    counts = ", ".join(f"{kind} {count}" for kind, count in outcome["failed"].items())
    why = f" ({outcome['message']})" if outcome["message"] else ""
    return f"FAILED {outcome['key']} {outcome['label']}: {counts}{why}"
