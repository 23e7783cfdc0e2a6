"""Runs the kernel parity tests of tests/gpu in the Triton interpreter, on the CPU.

In a process of their own: the interpreter is chosen when Triton is imported, and the tests that
compile need the other choice.
"""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[1] / "gpu"


@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="triton is not installed")
@pytest.mark.parametrize("name", sorted(p.stem for p in FOLDER.glob("test_*_kernels.py")))
def test_parity_in_the_interpreter(name):
    command = [sys.executable, "-m", "pytest", "-p", "no:xdist", "-p", "no:cacheprovider"]
    done = subprocess.run(
        [*command, "-x", "--tb=short", str(FOLDER / f"{name}.py")],
        env={**os.environ, "TRITON_INTERPRET": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-1000:]
    assert "passed" in done.stdout and "skipped" not in done.stdout, done.stdout
