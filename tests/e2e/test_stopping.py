"""Runs that are stopped say what is kept; errors of a launch are one line without a traceback."""

from __future__ import annotations

import contextlib
import os
import signal
import time

import pytest
from hydra.errors import HydraException
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from retrobench.cli import app as cli
from retrobench.cli import sweep
from retrobench.store.results import ResultStore
from tests.e2e import forks
from tests.e2e.runs import SMALL


class TerminatedWorkerError(Exception):
    """Named as joblib's."""


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (TerminatedWorkerError("exit codes {SIGKILL(-9)}"), "a worker process died"),
        (PermissionError(13, "Permission denied", "/x/y"), "/x/y: Permission denied"),
        (OSError("no space"), "no space"),
        (OSError(28, "No space left on device"), "error: No space left on device; finished"),
        (ValueError("bad"), "error: bad"),
    ],
)
def test_what_is_no_fault_of_ours_is_one_line(capsys, error, said):
    with pytest.raises(SystemExit, match="2"), cli.one_line_errors():
        raise error
    text = capsys.readouterr().err
    assert said in text and text.count("\n") == 1


def test_a_fault_of_ours_keeps_its_traceback():
    with pytest.raises(ZeroDivisionError), cli.one_line_errors():
        raise ZeroDivisionError
    with pytest.raises(ValueError), cli.one_line_errors(traced=True):
        raise ValueError


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (ValueError("bad"), 2),
        (HydraException("bad"), 2),
        (OmegaConfBaseException("bad"), 2),
        (KeyError("ours"), 1),
    ],
)
@pytest.mark.parametrize("part", ["start", "end"])
def test_an_error_around_a_sweep_is_no_warning(monkeypatch, capfd, tmp_path, error, code, part):
    def broken(config):
        raise error

    config = OmegaConf.create({"hydra": {"sweep": {"dir": str(tmp_path)}}})
    monkeypatch.setattr(sweep, "jobs", broken)
    with pytest.raises(SystemExit, match=str(code)):
        getattr(sweep.SweepTable(), f"on_multirun_{part}")(config)
    assert ("Traceback" in capfd.readouterr().err) == (code == 1)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["method=null"], "method=null: no such method"),
        (["+a=[b"], "error: "),
        (["-m", "~task.samples=7"], "error: "),
        (["+protocol=[1,2]"], "error: Hydra cannot use these overrides"),
        (["-m", "+protocol=[1,2]"], "error: "),
        (["-m", "method=full,quest", "results_dir=/dev/null/x"], "results_dir=/dev/null/x"),
        (["-m", "method=full,quest", "sweep=../../../X"], "sweep='../../../X': write a name"),
    ],
)
def test_a_launch_that_is_refused_is_one_line(arguments, said):
    ended = forks.run("run.py", *arguments)
    assert ended.returncode == 2 and said in ended.stderr
    assert len(ended.stderr.splitlines()) == 1 and not ended.stdout


@pytest.mark.slow
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
@pytest.mark.parametrize("flags", [[], ["-m"]])
def test_a_stopped_run_says_what_is_kept_and_how_to_go_on(tmp_path, number, code, flags):
    options = [*SMALL, "task.samples=400", "method=full", f"results_dir={tmp_path}"]
    run = forks.Command("run.py", *flags, *options)
    deadline = time.monotonic() + 120
    while not any(path.stat().st_size for path in tmp_path.glob("*/rows.jsonl")):
        assert run.poll() is None and time.monotonic() < deadline
        time.sleep(0.05)
    run.send_signal(number)
    _, error = run.communicate(timeout=60)
    assert run.returncode == code and "Traceback" not in error
    name = {signal.SIGINT: "Ctrl-C", signal.SIGTERM: "SIGTERM"}[number]
    said = f"stopped by {name}: finished samples are kept in the results folder; the same command"
    assert said in error.splitlines()[-1] and "Loading weights" not in error
    store = ResultStore(tmp_path)
    rows = store.read(store.cell_keys()[0])
    assert rows.rows and not rows.damaged


def _workers(parent: int) -> list[int]:
    """Processes below ``parent`` that run joblib's workers."""
    found = []
    for entry in os.listdir("/proc"):
        with contextlib.suppress(OSError, ValueError):
            number = int(entry)
            with open(f"/proc/{number}/stat") as stream:
                above = int(stream.read().rpartition(")")[2].split()[1])
            with open(f"/proc/{number}/cmdline") as stream:
                if above == parent and "popen_loky" in stream.read():
                    found.append(number)
    return found


@pytest.mark.slow
def test_a_dead_worker_of_joblib_is_one_sentence(tmp_path):
    pytest.importorskip("hydra_plugins.hydra_joblib_launcher")
    options = [*SMALL, "task.samples=400", "method=full,quest", f"results_dir={tmp_path}"]
    options += ["hydra/launcher=joblib", "hydra.launcher.n_jobs=2"]
    run = forks.Command("run.py", "-m", *options)
    deadline = time.monotonic() + 180
    while not any(path.stat().st_size for path in tmp_path.glob("*/rows.jsonl")):
        assert run.poll() is None and time.monotonic() < deadline
        time.sleep(0.05)
    os.kill(_workers(run.pid)[0], signal.SIGKILL)
    _, error = run.communicate(timeout=120)
    assert run.returncode == 2 and "Traceback" not in error
    assert "a worker process died" in error and "the same command goes on" in error
