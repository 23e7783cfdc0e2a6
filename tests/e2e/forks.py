"""Commands as a user starts them, forked from a process that has imported what they import.

A command's imports take longer than most of what the tests ask of it. ``tests.packaging`` and the
tests of the command line start real processes.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import runpy
import signal
import subprocess
import sys
import tempfile
import threading
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
IMPORTED = ["retrobench.cli.app", "retrobench.cli.console", "retrobench.run.group"]
IMPORTED += ["retrobench_methods", "retrobench.evaluate.calibrate", "tests.e2e.forks"]
_context = multiprocessing.get_context("forkserver")
_context.set_forkserver_preload(IMPORTED)


class Command:
    """A script of this checkout, or a module, in a process of its own; used as ``Popen`` is."""

    def __init__(self, script: str, *arguments, cwd=ROOT, **environment: str) -> None:
        self._folder = tempfile.TemporaryDirectory()
        self._said = [Path(self._folder.name) / name for name in ("out", "err")]
        environment = {**os.environ, "OMP_NUM_THREADS": "1", **environment}
        given = (script, [*map(str, arguments)], str(cwd), environment, self._said)
        self._process = _context.Process(target=_run, args=given)
        self._process.start()
        self.pid = self._process.pid

    @property
    def returncode(self) -> int | None:
        return self._process.exitcode

    def poll(self) -> int | None:
        return self._process.exitcode

    def send_signal(self, number: int) -> None:
        os.kill(self.pid, number)

    def wait(self, timeout: float | None = None) -> int | None:
        self._process.join(timeout)
        assert self.returncode is not None, f"still runs after {timeout} s"
        return self.returncode

    def communicate(self, timeout: float | None = None) -> tuple[str, str]:
        self.wait(timeout)
        out, err = (path.read_text("utf-8") for path in self._said)
        return out, err


def run(script: str, *arguments, **options) -> subprocess.CompletedProcess[str]:
    """Run a command to its end, as ``subprocess.run`` does."""
    command = Command(script, *arguments, **options)
    out, err = command.communicate(600)
    return subprocess.CompletedProcess([script, *arguments], command.returncode, out, err)


def _run(script, arguments, cwd, environment, said) -> None:
    """In the forked process: become the command."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    for number, path in ((0, os.devnull), (1, said[0]), (2, said[1])):
        os.dup2(os.open(path, os.O_RDWR | os.O_CREAT), number)
    sys.stdin, sys.stdout, sys.stderr = map(os.fdopen, range(3), "rww", [1] * 3)
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(cwd)
    is_file = script.endswith(".py")
    sys.argv = [str(ROOT / script) if is_file else script, *arguments]
    sys.path.insert(0, str((ROOT / script).parent) if is_file else cwd)
    with contextlib.suppress(KeyError):
        del sys.modules["__main__"]
    try:
        if is_file:
            runpy.run_path(sys.argv[0], run_name="__main__")
        else:
            runpy.run_module(script, run_name="__main__", alter_sys=True)
    finally:
        # as an interpreter ends, and multiprocessing does not: joblib tells its workers to end,
        # which would wait for more work for five minutes
        threading._shutdown()
