"""``retrobench traces``: records the library of traces of real models into the cache folder."""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import Any

from filelock import FileLock
from rich.table import Table

from retrobench.cli import app
from retrobench.cli.overrides import composed
from retrobench.core import traces
from retrobench.core.paths import check_folder
from retrobench.core.spec import unknown
from retrobench.core.words import counted

TAIL_TOKENS = STEPS = 32  # decode steps of a trace: the prompt's last tokens, then the answer's


def add(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """The sub-command's options."""
    text = "record queries, keys and values of real models, for model=trace:NAME"
    command = commands.add_parser("traces", help=text, description=text)
    command.add_argument("names", nargs="*", metavar="NAME", help="trace; none: the whole library")
    command.add_argument("--list", action="store_true", help="show the library and what is here")
    command.add_argument("--verify", action="store_true", help="check what is here; record nothing")
    command.set_defaults(run=_run)


def _run(options: argparse.Namespace) -> int:
    names = options.names or list(traces.LIBRARY)
    for name in names:
        if name not in traces.LIBRARY:
            raise unknown(name, "trace", list(traces.LIBRARY))
    if options.list:
        app.console().print(listing())
        return 0
    if options.verify:
        return _verify(names)
    return max(record(name) for name in names)


def record(name: str) -> int:
    """Record the prompts of a trace that are not there whole; exit code 1 if one failed."""
    trace, folder = traces.LIBRARY[name], traces.library_folder(name)
    check_folder("RETROBENCH_CACHE", folder)
    with FileLock(folder.with_name(f".{name}.lock")):
        for task, length in traces.missing(name, deep=True):
            app.say(f"{name}: recording {task} of {length} tokens ...")
            with tempfile.TemporaryDirectory(prefix="retrobench-") as rows:
                outcome = app.run_job(_configuration(trace, task, length, Path(rows)))
            if app.is_failure(outcome):
                app.say(f"{name}: {app.problem_line(outcome)}")
                return 1
    app.say(f"{name}: whole ({_size_mb(name):.0f} MB in {folder}); model=trace:{name} replays it")
    return 0


def _configuration(
    trace: traces.LibraryTrace, task: str, length: int, rows: Path
) -> dict[str, Any]:
    """The composed run that records one prompt.

    Kept in bfloat16, as the cache of a GPU, and computed in what is fast here. The prompt's last
    tokens are decode steps, too, so that a model that answers in two tokens leaves more steps.
    """
    return composed(
        [
            f"model={trace.model}",
            "method=full",
            "task=trace",
            f"task.path={traces.library_folder(trace.name)}",
            f"task.tasks=[{task}]",
            f"task.length={length}",
            f"task.steps={STEPS}",
            "task.dtype=bfloat16",
            f"task.layers=[{','.join(map(str, trace.layers))}]",
            "protocol=decode_tail",
            f"protocol.tail_tokens={TAIL_TOKENS}",
            f"results_dir={rows}",
        ]
    )


def _verify(names: list[str]) -> int:
    wrong = 0
    for name in names:
        lacks = traces.missing(name, deep=True)
        text = ", ".join(f"{task} of {length} tokens" for task, length in lacks)
        app.say(f"{name}: " + (f"not as recorded: {text}" if lacks else "whole"))
        wrong += len(lacks)
    return 1 if wrong else 0


def listing() -> Table:
    """The library, and what is here."""
    table = Table(title="retrobench traces NAME", caption=f"in {traces.library_folder('NAME')}")
    for column in ("name", "model", "layers", "prompts", "MB", "here"):
        table.add_column(column, justify="right" if column == "MB" else "left")
    for name, trace in traces.LIBRARY.items():
        lacks = len(traces.missing(name, deep=False))
        here = counted(len(trace.prompts) - lacks, "prompt") if lacks else "yes"
        prompts = ", ".join(f"{task} {length}" for task, length in trace.prompts)
        layers = ", ".join(map(str, trace.layers))
        size = f"{_size_mb(name):.0f}" if lacks < len(trace.prompts) else ""
        table.add_row(name, trace.model, layers, prompts, size, here)
    return table


def _size_mb(name: str) -> float:
    files = traces.library_folder(name).glob("*.safetensors")
    return sum(file.stat().st_size for file in files) / 1e6
