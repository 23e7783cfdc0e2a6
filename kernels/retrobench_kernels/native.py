"""Builds, checks and loads the C++ kernels of ``_native``: on first use, for this machine's CPU.

The library is cached under a hash of sources, compiler, flags and CPU features, in
``RETROBENCH_CACHE``, else ``XDG_CACHE_HOME/retrobench``, else ``~/.cache/retrobench``. A fresh
build must agree with the plain torch ops before it is kept. Without a compiler the plain torch
ops run, which is said once.
"""

from __future__ import annotations

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
from functools import cache
from pathlib import Path

import torch
from torch import Tensor

SOURCES = Path(__file__).parent / "_native"
FLAGS = ("-O3", "-std=c++17", "-fopenmp", "-shared", "-fPIC", "-ffp-contract=fast")
FLAGS += ("-fno-math-errno", "-Wno-psabi")
DTYPES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}
HEAD_DIM_STEP = 32  # two of the widest vectors


class BuildError(RuntimeError):
    """The library cannot be built or does not compute what it must."""


def unsupported(tensor: Tensor) -> str | None:
    """Why the kernels cannot serve a tensor of this dtype and head dim (its last axis), or None."""
    if tensor.dtype not in DTYPES:
        return f"dtype {tensor.dtype}"
    if tensor.shape[-1] % HEAD_DIM_STEP:
        return f"head dim {tensor.shape[-1]} is no multiple of {HEAD_DIM_STEP}"
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


def load() -> ctypes.CDLL:
    """Build if needed, and load. BuildError or OSError if that fails."""
    compiler = _compiler()
    command = [*compiler, *FLAGS, *_native_flags()]
    path = cache_dir() / f"{_key(command)}.so"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.with_suffix(".lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not path.exists():
                _build(command, path)
    return _open(path)


def _open(path: Path) -> ctypes.CDLL:
    """The library with the types of its most frequent call told once: the arguments of a call are
    then plain numbers, which matters where one call is tens of microseconds of work."""
    opened = ctypes.CDLL(str(path))
    pointer, count, number = ctypes.c_void_p, ctypes.c_int64, ctypes.c_int32
    opened.retrobench_cluster_select.argtypes = [
        *[pointer] * 9, count, count, number, count, count, count, number,
        ctypes.c_float, ctypes.c_float, pointer, number, number, number,
    ]  # fmt: skip
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
    from retrobench_kernels.selfcheck import disagreements

    print("retrobench: compiling the CPU kernels (once)", file=sys.stderr)  # noqa: T201
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        made = Path(folder) / path.name
        sources = [str(source) for source in sorted(SOURCES.glob("*.cpp"))]
        done = subprocess.run(
            [*command, *sources, "-o", str(made)], capture_output=True, text=True, check=False
        )
        if done.returncode:
            raise BuildError(f"{command[0]} failed: {done.stderr.strip()[-600:]}")
        wrong = disagreements(_open(made))
        if wrong:
            raise BuildError(f"the built kernels disagree with plain torch: {', '.join(wrong)}")
        made.replace(path)


def _compiler() -> list[str]:
    """``CXX`` or g++; BuildError if there is none."""
    command = shlex.split(os.environ.get("CXX", "g++"))
    if not command or shutil.which(command[0]) is None:
        raise BuildError(f"no C++ compiler {command[0] if command else ''!r} (install g++)")
    return command


def _native_flags() -> list[str]:
    """Use every instruction of this CPU."""
    return ["-mcpu=native" if platform.machine() in ("aarch64", "arm64") else "-march=native"]


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


def pointer(tensor: Tensor | None) -> int | None:
    """Address of a tensor's data (None for no tensor)."""
    return None if tensor is None else tensor.data_ptr()


def rows(tensor: Tensor) -> Tensor:
    """The tensor, with rows of the last two axes packed (a copy only if they are not)."""
    packed = tensor.stride(-1) == 1 and tensor.stride(-2) == tensor.shape[-1]
    return tensor if packed else tensor.contiguous()


def int32(tensor: Tensor) -> Tensor:
    """Contiguous int32; calls no torch operation where it already is."""
    if tensor.dtype == torch.int32 and tensor.is_contiguous():
        return tensor
    return tensor.to(torch.int32).contiguous()


def table(tensor: Tensor) -> Tensor:
    """int32 whose last axis is packed; calls no torch operation where it already is."""
    if tensor.dtype != torch.int32:
        tensor = tensor.to(torch.int32)
    return tensor if tensor.stride(-1) == 1 else tensor.contiguous()


def query(q_BHD: Tensor) -> tuple[Tensor, int]:
    """The query as contiguous float32, and whether bf16 dot products lose nothing of it."""
    return q_BHD.float().contiguous(), int(q_BHD.dtype == torch.bfloat16)


def query_as_is(q_BHD: Tensor) -> tuple[Tensor, int]:
    """Like ``query``, for the kernels that also read bfloat16 (the flag says that it is)."""
    if q_BHD.dtype != torch.bfloat16:
        return query(q_BHD)
    return q_BHD if q_BHD.is_contiguous() else q_BHD.contiguous(), 1


def splits(heads: int, tokens: int, per_split: int = 1024) -> int:
    """Into how many parts to cut each head so that all threads have work."""
    wanted = -(-4 * torch.get_num_threads() // heads)
    return max(1, min(wanted, tokens // per_split))
