"""Facts about this machine, the installed versions, the commit, and peak memory."""

import importlib.metadata
import os
import platform
import resource
import subprocess
from functools import cache
from pathlib import Path
from typing import Any

from retrobench.core.shapes import Footprint

_PACKAGES = ("torch", "transformers", "numpy", "triton", "flash-attn", "flashinfer-python")
_ROOT = Path(__file__).parents[3]


@cache
def provenance() -> dict[str, Any]:
    """Hardware, versions and commit for every row's cell."""
    import torch

    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    return {
        "cpu": _cpu_name(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "gpu": gpu,
        "python": platform.python_version(),
        "versions": {name: version for name in _PACKAGES if (version := version_of(name))},
        **commit(),
    }


@cache
def commit() -> dict[str, Any]:
    """Git commit and dirty flag of the checkout (None outside of one)."""
    try:
        head = _git("rev-parse", "HEAD")
        dirty = bool(_git("status", "--porcelain", "--untracked-files=no"))
    except (OSError, subprocess.CalledProcessError):
        return {"commit": None, "dirty": None}
    return {"commit": head, "dirty": dirty}


def use_device(device: str) -> None:
    """Make a GPU the current one, so that events, streams and launches are its own."""
    if device.startswith("cuda"):
        import torch

        torch.cuda.set_device(device)


def peak_bytes(device: str) -> dict[str, int]:
    """Peak device memory of the session (CUDA) and peak resident memory of the process."""
    import torch

    peak = {"process": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024}
    if device.startswith("cuda"):
        peak["device"] = torch.cuda.max_memory_allocated(device)
    return peak


def reset_peak(device: str) -> None:
    """Start a new device peak (CUDA only)."""
    if device.startswith("cuda"):
        import torch

        torch.cuda.reset_peak_memory_stats(device)


class NotEnoughMemory(ValueError):
    """What was asked for needs more memory than is free; found before anything is allocated."""


class Absent(NotEnoughMemory):
    """A case that is larger than this machine: it is left out, and nothing has failed."""


def require_free(need: int, free: int, what: str, where: str, fix: str) -> None:
    """NotEnoughMemory if ``what`` needs more bytes than are free (0: unknown)."""
    if free and need > free:
        raise NotEnoughMemory(
            f"{what} needs {need / 2**30:.1f} GiB but only {free / 2**30:.1f} GiB of {where} are "
            f"free; use {fix}"
        )


def require_room(need: Footprint, device: str, what: str, fix: str, *, mapped: bool) -> None:
    """NotEnoughMemory if any place has not as much free; on a CPU all places are one.

    ``mapped``: several devices share what is on the device, so that it is not checked.
    """
    host = need.pinned + need.host
    if not device.startswith("cuda"):
        host = need.total
    elif not mapped:
        require_free(need.device, free_device_bytes(device), what, device, fix)
    require_free(host, available_bytes(), what, "memory", fix)


def available_bytes() -> int:
    """Memory that this process may still take, from the operating system (0 if unknown)."""
    try:
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    return 0


def free_device_bytes(device: str) -> int:
    """Memory of an accelerator that this process may still take (0 if unknown)."""
    if not device.startswith("cuda"):
        return 0
    import torch

    free, _ = torch.cuda.mem_get_info(device)
    return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)


def _git(*args: str) -> str:
    command = ["git", "-C", str(_ROOT), *args]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


def version_of(name: str) -> str | None:
    """Version of an installed package; None where it is not installed."""
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _cpu_name() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()
