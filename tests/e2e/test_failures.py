"""What a failure is called, and what it does to a cell."""

from __future__ import annotations

import errno
import re

import numpy as np
import pytest
import torch

from retrobench.cli import app as cli
from retrobench.run.failures import failure
from retrobench.store.results import ResultStore
from tests.e2e.runs import config

TOO_MANY = 10**15


def job(results, **changes):
    task = {"name": "ruler", "tasks": ["niah_single_2"], "length": 1024, "samples": 1}
    return cli.run_job(config(results, **{"method": {"name": "full"}, "task": task, **changes}))


def _no_memory():
    raise OSError(errno.ENOMEM, "Cannot allocate memory")


@pytest.mark.parametrize(
    "allocate",
    [
        lambda: torch.empty(TOO_MANY),
        lambda: torch.zeros(2**62),
        lambda: torch.zeros(1).expand(TOO_MANY).contiguous(),
        lambda: torch.zeros(1).expand(TOO_MANY).clone(),
        lambda: np.empty(TOO_MANY),
        lambda: bytearray(TOO_MANY),
        _no_memory,
    ],
)
def test_memory_that_runs_out_is_oom_whoever_allocates(allocate):
    with pytest.raises(Exception) as caught:
        allocate()
    assert failure(caught.value)[0] == "oom"


@pytest.mark.parametrize("error", [RuntimeError("shape mismatch"), OSError(errno.EACCES, "no")])
def test_other_failures_are_errors(error):
    assert failure(error)[0] == "error"


@pytest.mark.parametrize("device", ["tpu", "", "cuda:99", "mps:x", "cpu:1", "meta", "CPU"])
def test_a_device_that_is_not_here_is_refused_and_leaves_the_cell_alone(tmp_path, device):
    good = {"name": "constructed", "source": "constructed"}
    for _ in range(4):
        with pytest.raises(ValueError, match=r"model\.device=.*use one of auto, cpu"):
            job(tmp_path, model={**good, "device": device})
    assert not ResultStore(tmp_path).cell_keys()
    assert job(tmp_path)["ran"] == 1


def test_failures_under_other_options_do_not_quarantine_a_cell(tmp_path, monkeypatch):
    from retrobench.engine import loader

    def broken(config):
        raise RuntimeError("the driver hangs")

    with monkeypatch.context() as patched:
        patched.setattr(loader, "resident", broken)
        for _ in range(3):
            outcome = job(tmp_path, engine={"prefill_cache_gib": 0.5})
            assert outcome["failed"] == {"error": 1}
    assert job(tmp_path, engine={"prefill_cache_gib": 0.5})["failed"] == {"quarantined": 1}
    assert job(tmp_path)["ran"] == 1


def test_the_last_lines_say_why_samples_failed(tmp_path):
    outcome = job(tmp_path, protocol={"name": "decode_tail", "tail_tokens": 9999})
    said = cli.problem_line(outcome)
    assert re.search(r"error 1 \(.*protocol.tail_tokens=9999 leaves nothing .* \d+ tokens", said)
