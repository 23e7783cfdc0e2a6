"""What run.py sets for OpenMP and torch."""

from __future__ import annotations

import os

from retrobench.cli.environment import set_environment


def test_what_is_set_already_stays(monkeypatch):
    for name in ("OMP_WAIT_POLICY", "THP_MEM_ALLOC_ENABLE"):
        monkeypatch.setenv(name, "x")  # so that it is put back
        monkeypatch.delenv(name)
    monkeypatch.setenv("GOMP_SPINCOUNT", "7")
    set_environment()
    assert os.environ["OMP_WAIT_POLICY"] == "passive"
    assert os.environ["THP_MEM_ALLOC_ENABLE"] == "1"
    assert os.environ["GOMP_SPINCOUNT"] == "7"
