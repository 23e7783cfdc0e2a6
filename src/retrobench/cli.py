"""``python run.py``: compose with Hydra, run one cell per job, print one table."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from hydra.core.config_store import ConfigStore
from hydra.core.hydra_config import HydraConfig
from hydra.experimental.callback import Callback
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from rich.console import Console

from retrobench.core.registry import method_names
from retrobench.core.spec import nearest

TYPED_GROUPS = ("method", "task", "model", "protocol", "measure", "engine", "tracker", "data")
_LIST = "cells.jsonl"


def launch(hydra_main: Callable[[], None], conf_dir: Path) -> None:
    """Entry of run.py: prepare the command line, then hand over to Hydra."""
    try:
        sys.argv[1:] = prepare(sys.argv[1:], conf_dir)
    except ValueError as error:
        fail(error)
    hydra_main()


def prepare(arguments: Sequence[str], conf_dir: Path) -> list[str]:
    """Command-line overrides as Hydra wants them.

    Options of typed groups become ``++group.option`` because the yaml files hold only what differs
    from the defaults (the dataclasses check names and ranges). Unknown choices of a group raise
    ValueError with the nearest name. Methods of other packages need no yaml.
    """
    store = ConfigStore.instance()
    for name in method_names():
        if not (conf_dir / "method" / f"{name}.yaml").exists():
            store.store(group="method", name=name, node={"name": name})
    prepared = []
    for argument in arguments:
        name, equals, value = argument.partition("=")
        if name == "measure" and set(value.split(",")) == {"score", "fidelity"}:
            prepared += ["measure=fidelity", "++measure.score=true"]  # one cell, not a sweep of two
            continue
        if equals and re.match(rf"({'|'.join(TYPED_GROUPS)})\.", name):
            argument = "++" + argument
        elif equals and (conf_dir / name).is_dir():
            _check_choices(name, value, conf_dir)
        elif equals and re.fullmatch(r"[a-z_]+(\.\w+)*", name):
            _check_option(name, conf_dir)
        prepared.append(argument)
    return prepared


def _check_option(name: str, conf_dir: Path) -> None:
    """ValueError for a name that neither the configuration nor Hydra knows."""
    groups = {path.name for path in conf_dir.iterdir() if path.is_dir()}
    config = OmegaConf.load(conf_dir / "config.yaml")
    assert isinstance(config, DictConfig)
    known = sorted(({str(key) for key in config} | groups) - {"defaults"})
    if name.partition(".")[0] not in known:
        raise ValueError(
            f"{name}: no such option{nearest(name, known)} Options: {', '.join(known)}"
        )


def _check_choices(group: str, value: str, conf_dir: Path) -> None:
    known = {path.stem for path in (conf_dir / group).glob("*.yaml")}
    if group == "method":
        known |= set(method_names())
    if any(mark in value for mark in "(){}[]"):
        return  # Hydra's own sweep syntax
    for choice in value.split(","):
        if choice and choice != "null" and choice.strip() not in known:
            suggestion = nearest(choice, known)
            listed = ", ".join(sorted(known))
            raise ValueError(f"{group}={choice}: no such {group}{suggestion} Available: {listed}")


def main(config: DictConfig) -> None:
    """One Hydra job. A failure in a sweep becomes an entry of the final report."""
    from retrobench.samples import redact

    sweep = HydraConfig.get().mode == RunMode.MULTIRUN
    try:
        outcome = run_job(OmegaConf.to_container(config, resolve=True))
    except KeyboardInterrupt:
        sys.exit(130)
    except Exception as error:
        if not sweep:
            if isinstance(error, ValueError):
                fail(error)
            raise
        overrides = " ".join(HydraConfig.get().overrides.task)
        _note({"job": overrides, "error": redact(f"{type(error).__name__}: {error}")})
        return
    if sweep:
        _note(outcome)
        return
    show([outcome], config.results_dir)
    if outcome.get("failed"):
        sys.exit(1)


def run_job(raw: Any) -> dict[str, Any]:
    """Run one composed configuration; the outcome as plain values."""
    from retrobench.runner import run_cell
    from retrobench.runspec import parse_run

    raw.pop("hydra", None)
    outcome = run_cell(parse_run(raw))
    return {
        "key": outcome.key,
        "ran": outcome.ran,
        "cached": outcome.cached,
        "failed": outcome.failed,
        "planned": outcome.planned,
        "label": " ".join(str(outcome.labels[name]) for name in ("model", "method", "benchmark")),
        "notes": list(outcome.notes),
    }


def fail(error: Exception) -> None:
    """Print a user error and leave with exit code 2."""
    console = Console(stderr=True, soft_wrap=True, highlight=False, markup=False)
    console.print(f"error: {error}", style="red")
    sys.exit(2)


def show(outcomes: list[dict[str, Any]], results_dir: str) -> None:
    """What ran, what was cached, what failed, and the table of all cells."""
    from retrobench.report.table import print_tables
    from retrobench.store.results import ResultStore

    console = Console(width=None if Console().is_terminal else 160)
    for outcome in outcomes:
        if "error" in outcome:
            console.print(f"FAILED {outcome['job']}: {outcome['error']}", markup=False)
            continue
        line = f"{outcome['key']} {outcome['label']}: "
        line += outcome["planned"] or f"{outcome['ran']} samples run, {outcome['cached']} on disk"
        if outcome["failed"]:
            line += f", failed {outcome['failed']}"
        console.print(line, markup=False, highlight=False)
    keys = [o["key"] for o in outcomes if "key" in o and not o["planned"]]
    if keys:
        store = ResultStore(results_dir)
        print_tables(store.frame(list(dict.fromkeys(keys))), console)


def _note(entry: dict[str, Any]) -> None:
    """Append an entry to the sweep's list; lines are short, so appends of workers do not mix."""
    folder = Path(HydraConfig.get().sweep.dir)
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / _LIST).open("a", encoding="utf-8") as stream:
        stream.write(json.dumps(entry) + "\n")


class SweepTable(Callback):
    """Prints one table for a whole sweep; exit code 1 if any cell failed."""

    def on_multirun_end(self, config: DictConfig, **kwargs: Any) -> None:
        """Read what the jobs noted, wherever they ran."""
        path = Path(config.hydra.sweep.dir) / _LIST
        outcomes = [json.loads(line) for line in path.read_text().splitlines()]
        show(outcomes, config.results_dir)
        if any("error" in outcome or outcome.get("failed") for outcome in outcomes):
            sys.exit(1)
