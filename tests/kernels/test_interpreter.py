"""Runs the kernel parity tests of tests/gpu in the Triton interpreter, on the CPU.

In a process of their own: the interpreter is chosen when Triton is imported, and the tests that
compile need the other choice.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[1] / "gpu"


def reason_to_skip() -> str:
    """Empty if the interpreter works with what is installed."""
    if importlib.util.find_spec("triton") is None:
        return "triton is not installed"
    triton, numpy = (
        tuple(map(int, importlib.metadata.version(name).split(".")[:2]))
        for name in ("triton", "numpy")
    )
    broken = triton <= (3, 6) and numpy >= (2, 4)  # int() of an array with one element
    return "the interpreter of Triton 3.6 needs NumPy < 2.4" if broken else ""


@pytest.mark.slow
@pytest.mark.skipif(bool(reason_to_skip()), reason=reason_to_skip())
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
