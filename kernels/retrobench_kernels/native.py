"""Builds, checks and loads the C++ kernels of ``_native``: on first use, for this machine's CPU.

The library is cached under a hash of sources, compiler, flags and CPU features, in
``RETROBENCH_CACHE``, else ``XDG_CACHE_HOME/retrobench``, else ``~/.cache/retrobench``. A fresh
build must agree with the plain torch ops before it is kept; a file that is no longer what was kept
is built again. Without a compiler the plain torch ops run, which is said once.
"""

import ctypes
import fcntl
import hashlib
import os
import platform
import shlex
import shutil
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Callable
from contextvars import ContextVar, copy_context
from functools import cache
from pathlib import Path

import torch
from torch import Tensor

from retrobench_kernels import selfcheck
from retrobench_kernels.cpu_common import DTYPES

SOURCES = Path(__file__).parent / "_native"
FLAGS = ("-O3", "-std=c++17", "-fopenmp", "-shared", "-fPIC", "-ffp-contract=fast")
FLAGS += ("-fno-math-errno", "-Wno-psabi")
HEAD_DIM_STEP = 32  # two of the widest vectors
_TYPES = {"p": ctypes.c_void_p, "q": ctypes.c_int64, "i": ctypes.c_int32, "f": ctypes.c_float}
# Parameters of the C++ functions: pointer, int64, int32, float. Keep in step with ``_native``.
SIGNATURES = {
    "assign": "pppppqqqipii",
    "causal": "ppppqqqqqqqpfi",
    "cluster_select": "p",
    "cluster_step": "ppppppppp",
    "dense": "pppppppqqiqiffpiiii",
    "graph_build": "ppppqqqqqiqqi",
    "graph_insert": "pppqqqqqipii",
    "graph_search": "ppppppppqqqqqqqqipii",
    "logit_margin": "ppppqqqqqpiii",
    "page_select": "ppppppqqqqiipii",
    "read": "pqi",
    "sums": "pppppqqqipii",
    "wave": "p",
}
_checked: ContextVar[ctypes.CDLL | None] = ContextVar("library under check", default=None)


class BuildError(RuntimeError):
    """The library cannot be built or does not compute what it must."""


def unsupported(tensor: Tensor) -> str | None:
    """Why the kernels cannot serve a tensor of this dtype and head dim (its last axis), or None."""
    if tensor.dtype not in DTYPES:
        return f"dtype {tensor.dtype}"
    if tensor.shape[-1] % HEAD_DIM_STEP:
        return f"head dim {tensor.shape[-1]} is no multiple of {HEAD_DIM_STEP}"
    return None if library() is not None else "no library"


def unsupported_keys(tensor: Tensor) -> str | None:
    """The same for kernels that read keys of any head dim, but not in float16."""
    if tensor.dtype not in (torch.float32, torch.bfloat16):
        return f"dtype {tensor.dtype}"
    return None if library() is not None else "no library"


@cache
def library() -> ctypes.CDLL | None:
    """The loaded library; None, with one warning, where it cannot be had."""
    try:
        return load()
    except (BuildError, OSError) as error:
        warnings.warn(
            f"CPU kernels are not available, plain torch is used (slower): {error}", stacklevel=2
        )
        return None


def function(name: str) -> Callable[..., None]:
    """A C++ function: of the library under check, else of the one of this machine."""
    found = _checked.get() or library()
    assert found is not None
    return getattr(found, f"retrobench_{name}")


def flag(name: str) -> bool:
    """A property that C++ found when it was compiled for this machine."""
    found = library()
    return found is not None and bool(ctypes.c_int32.in_dll(found, f"retrobench_{name}").value)


def load() -> ctypes.CDLL:
    """Build if needed, and load. BuildError or OSError if that fails."""
    command = _command()
    path = cache_dir() / f"{_key(command)}.so"
    if not _is_whole(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.with_suffix(".lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not _is_whole(path):
                _build(command, path)
    return _open(path)


def _is_whole(path: Path) -> bool:
    """Whether a library is what was built: to open a damaged one could end the process."""
    try:
        return path.with_suffix(".sha256").read_text("ascii") == _hash(path)
    except (OSError, ValueError):
        return False


def _hash(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _open(path: Path) -> ctypes.CDLL:
    """The library with the argument types of its functions told, so that calls pass numbers.

    A call is tens of microseconds of work: wrapping each number in its ctypes type would cost as
    much again.
    """
    opened = ctypes.CDLL(str(path))
    for name, letters in SIGNATURES.items():
        getattr(opened, f"retrobench_{name}").argtypes = [_TYPES[letter] for letter in letters]
    return opened


def cache_dir() -> Path:
    """Where libraries are kept."""
    root = os.environ.get("RETROBENCH_CACHE")
    if root:
        return Path(root) / "kernels"
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "retrobench" / "kernels"


def _build(command: list[str], path: Path) -> None:
    """Compile next to ``path``, check against plain torch, then move into place."""
    print("retrobench: compiling the CPU kernels (once)", file=sys.stderr)  # noqa: T201
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        made = Path(folder) / path.name
        sources = [str(source) for source in sorted(SOURCES.glob("*.cpp"))]
        done = subprocess.run(
            [*command, *sources, "-o", str(made)], capture_output=True, text=True, check=False
        )
        if done.returncode:
            raise BuildError(f"{command[0]} failed: {done.stderr.strip()[-600:]}")
        context = copy_context()
        context.run(_checked.set, _open(made))
        wrong = context.run(selfcheck.disagreements)
        if wrong:
            raise BuildError(f"the built kernels disagree with plain torch: {', '.join(wrong)}")
        path.unlink(missing_ok=True)
        path.with_suffix(".sha256").write_text(_hash(made), "ascii")
        made.replace(path)


def _command() -> list[str]:
    """``CXX`` or g++ with the flags for every instruction of this CPU; BuildError without it."""
    compiler = shlex.split(os.environ.get("CXX", "g++"))
    if not compiler or shutil.which(compiler[0]) is None:
        raise BuildError(f"no C++ compiler {compiler[0] if compiler else ''!r} (install g++)")
    arm = platform.machine() in ("aarch64", "arm64")
    return [*compiler, *FLAGS, "-mcpu=native" if arm else "-march=native"]


def _key(command: list[str]) -> str:
    version = subprocess.run([*command[:1], "--version"], capture_output=True, check=False).stdout
    digest = hashlib.sha256(repr((command, version, _cpu_features())).encode())
    for source in sorted(SOURCES.iterdir()):
        digest.update(source.read_bytes())
    return digest.hexdigest()[:16]


def _cpu_features() -> str:
    """Instruction sets of this CPU, so that a cache shared by machines keeps them apart."""
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith(("flags", "Features")):
                return line
    except OSError:
        pass
    return platform.processor()
