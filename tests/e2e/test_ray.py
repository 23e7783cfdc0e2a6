"""``hydra/launcher=ray``: real workers of a local Ray, one of them killed."""

from __future__ import annotations

import os
import re
import signal
import time
from pathlib import Path

import pytest

from retrobench.cli import ray_sweep, units
from retrobench.store.results import ResultStore
from tests.e2e.runs import ROOT, rows_of, start

OPTIONS = ["hydra/launcher=ray", "hydra.launcher.n_jobs=2", "method=full,quest"]
OPTIONS += ["task.length=1200,1300"]


def workers(runs):
    """Processes that hold the lock of a cell of this results folder."""
    found = set()
    for lock in Path(runs).glob("*/.lock"):
        inode = lock.stat().st_ino
        for line in Path("/proc/locks").read_text().splitlines():
            if match := re.search(r"FLOCK .* WRITE (\d+) \S+:(\d+) ", line):
                found |= {int(match[1])} if int(match[2]) == inode else set()
    return found


@pytest.mark.slow
def test_a_killed_worker_s_group_runs_again(tmp_path):
    pytest.importorskip("ray", reason="pip install 'retrobench[ray]'")
    runs = tmp_path / "runs"
    sweep = start(runs, *OPTIONS, "task.samples=8", f"hydra.sweep.dir={tmp_path}/sweep")
    deadline = time.monotonic() + 300
    while not (rows_of(runs) and workers(runs)) and time.monotonic() < deadline:
        assert sweep.poll() is None, sweep.communicate()[1]
        time.sleep(0.05)
    os.kill(min(workers(runs)), signal.SIGKILL)
    text, errors = sweep.communicate(timeout=600)
    assert sweep.returncode == 0, errors
    assert "a worker died" in errors and "its group runs again" in errors
    counts = rows_of(runs)
    assert len(counts) == 4 * 8 and set(counts.values()) == {1}
    assert text.count("scores (x100)") == 1
    store = ResultStore(runs)
    assert {store.status(key)["state"] for key in store.cell_keys()} == {"done"}


def test_groups_of_one_model_come_together_and_led_jobs_stay_away(tmp_path):
    models = [{"name": n} for n in "abbab"]
    configs = [{"model": model} for model in models]
    units.write(tmp_path, ["1", "2", "3", "4", "3"], list("01234"), configs, 1)
    groups = ray_sweep._groups(tmp_path, [[name] for name in "01234"], 0)
    assert sorted(group.number for group in groups) == [0, 1, 2, 3]  # 4 is led by 2
    waiting, model = list(groups), groups[0].model
    taken = [ray_sweep._next(waiting, model) for _ in range(2)]
    assert {group.model for group in taken} == {model} and len(waiting) == 2
    assert ray_sweep._next(waiting, model).model != model


@pytest.mark.parametrize("name", ["workers", "cpus", "tries"])
def test_a_sweep_needs_workers(name):
    options = {"workers": 1, "cpus": 1, "gpus": 0, "address": None, "tries": 1, name: 0}
    with pytest.raises(ValueError, match="give a number above 0"):
        ray_sweep.launch({}, [], 0, **options)


@pytest.mark.slow
def test_without_ray_the_launcher_says_what_to_install(tmp_path):
    try:
        import ray  # noqa: F401
    except ImportError:
        sweep = start(tmp_path, *OPTIONS, f"hydra.sweep.dir={tmp_path}/sweep")
        _, errors = sweep.communicate(timeout=300)
        assert sweep.returncode == 2 and "pip install 'retrobench[ray]'" in errors
    else:
        pytest.skip("ray is installed")
    assert (ROOT / "src" / "hydra_plugins" / "retrobench_ray.py").is_file()
