"""What cases of ``fuzz.py`` share: results to start from, processes, and what is checked."""

import contextlib
import importlib
import os
import pkgutil
import random
import resource
import shutil
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
CODES = {0, 1, 2}
STOP_CODES = CODES | {130, 143, -signal.SIGKILL, -signal.SIGTERM, -signal.SIGINT}
SMALL = ["task=ruler", "task.tasks=[niah_single_2]", "task.length=512", "progress=false"]
ASKED = ["model=constructed", *SMALL, "task.samples=2"]
BASE, OTHER, MORE = ["full", "quest"], "streaming", 5  # methods on disk; samples of a stopped run


class Case:
    """One case: its random generator, its folder with a copy of the results, what went wrong."""

    def __init__(self, lab: "Lab", number: int, kind: str) -> None:
        self.lab, self.number, self.kind = lab, number, kind
        self.random = random.Random(f"{lab.seed} {number}")
        self.real = self.random.random() < lab.real  # a process of its own, not a fork
        self.folder = lab.folder / "case"
        shutil.rmtree(self.folder, ignore_errors=True)
        shutil.copytree(lab.base, self.folder / "runs")
        shutil.copytree(lab.cache, self.folder / "cache", symlinks=True)
        os.environ["RETROBENCH_CACHE"] = str(self.folder / "cache")
        self.said: list[str] = []
        self.wrong: list[str] = []

    def run(self, program: str, *arguments: str, stop: tuple[int, float] | None = None) -> int:
        """A command in the case's folder, ended by ``stop`` (signal, seconds); its exit code."""
        log = self.folder / "log"
        process = _start(program, arguments, self.folder, log, self.real)
        code = _wait(process, self.lab.limit_s, *(stop or (signal.SIGKILL, self.lab.limit_s)))
        output = log.read_text("utf-8", errors="replace")
        shown = " ".join(map(repr, (program, *arguments)))
        self.said.append(f"$ {shown}\n  exit code {code}\n{output[-1500:]}")
        if "Traceback (most recent call last)" in output:
            self.wrong.append("a traceback")
        if stop is None and code == -signal.SIGKILL:
            self.wrong.append(f"more than {self.lab.limit_s} s")
        elif code not in (STOP_CODES if stop else CODES):
            self.wrong.append(f"exit code {code}")
        elif code and not stop and not output.strip():
            self.wrong.append(f"exit code {code} without a word")
        return code

    def check_rows(self, expected: dict[str, Any], touched: Sequence[str] = ()) -> None:
        """Rows on disk hold the ``expected`` ones; cells that are not ``touched`` are the same."""
        found = _rows(self.folder / "runs")
        for key, rows in expected.items():
            lost = [s for s, row in rows.items() if found.get(key, {}).get(s) != row]
            self.wrong += [f"cell {key}: rows lost or changed: {', '.join(lost)}"] if lost else []
            for name in () if key in touched else ("cell.json", "rows.jsonl", "status.json"):
                before, now = (root / key / name for root in (self.lab.base, self.folder / "runs"))
                if before.read_bytes() != now.read_bytes():
                    self.wrong.append(f"cell {key}: {name} changed")


class Lab:
    """What all cases share: results to start from, a checkpoint, a cache, options, durations."""

    def __init__(self, folder: Path, seed: int, real: float, limit_s: float) -> None:
        self.folder, self.seed, self.real, self.limit_s = folder, seed, real, limit_s
        self.cache, self.base, self.checkpoint = folder / "cache", folder / "base", folder / "model"
        self._share_cache()
        began = time.monotonic()
        _warm()
        warm_s = time.monotonic() - began
        _save_checkpoint(self.checkpoint)
        whole, began = folder / "whole", time.monotonic()
        self._make(whole, BASE, MORE)
        took = time.monotonic() - began
        self.full_s = {False: took, True: took + warm_s}  # a new process imports first
        self.whole = _rows(whole)
        self._make(self.base, [*BASE, OTHER], 2)
        self.rows = _rows(self.base)
        self.keys = _keys_by_method(self.base)

    def _share_cache(self) -> None:
        from retrobench_kernels import native

        compiled = native.cache_dir()
        compiled.mkdir(parents=True, exist_ok=True)
        os.environ["RETROBENCH_CACHE"] = str(self.cache)
        self.cache.mkdir()
        native.cache_dir().symlink_to(compiled)

    def _make(self, results: Path, methods: list[str], samples: int) -> None:
        given = ["-m", f"method={','.join(methods)}", *ASKED, f"task.samples={samples}"]
        log = self.folder / "log"
        process = _start("run.py", [*given, f"results_dir={results}"], self.folder, log, False)
        if _wait(process, 0, signal.SIGKILL, 600):
            sys.exit(f"the cells to start from did not run:\n{log.read_text()}")


def _keys_by_method(results: Path) -> dict[str, str]:
    from retrobench.store.results import ResultStore

    store = ResultStore(results)
    return {store.cell(key)["labels"]["method"]: key for key in store.cell_keys()}


def _rows(results: Path) -> dict[str, dict[str, Any]]:
    """Per cell and sample: what a run must give again."""
    from retrobench.store.results import ResultStore

    store, found = ResultStore(results), {}
    names = "status score prediction prompt_hash references generated_tokens footprint".split()
    for key in store.cell_keys():
        rows = store.read(key).rows.items()
        kept = {s: {n: row.get(n) for n in names} for s, row in rows}
        found[key] = kept
    return found


def _save_checkpoint(folder: Path) -> None:
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    from retrobench.engine.embedded import build_tokenizer

    tokenizer = build_tokenizer()
    torch.manual_seed(0)
    shape = {"hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 3}
    shape |= {"num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": len(tokenizer)}
    LlamaForCausalLM(LlamaConfig(**shape)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def _warm() -> None:
    """Import and build once what every case needs: cases are forks."""
    import torch

    import retrobench
    from retrobench.cli import overrides
    from retrobench.engine import loader
    from retrobench.run import spec

    for module in pkgutil.walk_packages(retrobench.__path__, "retrobench."):
        with contextlib.suppress(ImportError):  # extras that are not here
            importlib.import_module(module.name)

    torch.set_num_threads(1)
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # its threads would not outlive a fork
    asked = overrides.composed(["method=full", *ASKED], ROOT / "conf")
    loader.resident(spec.parse_run(asked).model)


def _start(program: str, arguments: Any, folder: Path, log: Path, real: bool) -> int:
    """A command as a process of its own, or as a fork of this one; its process id."""
    if real:
        command = (
            [str(ROOT / "run.py")] if program == "run.py" else ["-m", "retrobench.cli.console"]
        )
        with log.open("w") as out:
            return subprocess.Popen(
                [sys.executable, *command, *arguments], cwd=folder, stdin=subprocess.DEVNULL,
                stdout=out, stderr=out, start_new_session=True,
            ).pid  # fmt: skip
    if process := os.fork():
        return process
    code = 1
    try:
        os.setsid()
        for number, name, flags in ((0, os.devnull, 0), (1, log, 577), (2, log, 1025)):
            os.dup2(os.open(name, flags, 0o600), number)
        os.chdir(folder)
        resource.setrlimit(resource.RLIMIT_DATA, (24 * 2**30,) * 2)
        code = _command(program, list(arguments))
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _command(program: str, arguments: list[str]) -> int:
    from retrobench.cli import app, console

    sys.argv = [str(ROOT / program), *arguments]
    try:
        return (
            console.main(arguments) if program == "retrobench" else app.launch(ROOT / "conf") or 0
        )
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else int(end.code is not None)


def _wait(process: int, limit_s: float, number: int, seconds: float) -> int:
    """The exit code of a process, which gets a signal after some time and SIGKILL in the end."""
    began, sent = time.monotonic(), 0
    while True:
        ended, status = os.waitpid(process, os.WNOHANG)
        if ended:
            return os.waitstatus_to_exitcode(status)
        passed = time.monotonic() - began
        if not sent and passed > seconds:
            os.kill(process, sent := number)
        if passed > limit_s + seconds:
            os.killpg(process, signal.SIGKILL)
        time.sleep(0.005)
