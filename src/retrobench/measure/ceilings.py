"""What this machine can do: the limits that speeds are shown against."""

import ctypes
import statistics
from functools import cache
from pathlib import Path

import torch
from retrobench_kernels.native import library
from torch import Tensor

from retrobench.measure.clock import make_clock

_PROBE_BYTES = 256 * 2**20
_CACHE_BYTES = 64 * 2**20  # where the operating system does not say


def read_gb_s(device: str, repeats: int = 7) -> float:
    """Median rate of reading memory once, with all threads (CUDA: of a copy, both ways counted)."""
    data, clock = _probe_data(device), make_clock(device)
    times = []
    for _ in range(repeats + 1):
        start = clock()
        read(data)
        times.append(clock() - start)
    ways = 2 if device.startswith("cuda") else 1
    return ways * data.nbytes / statistics.median(times[1:]) / 1e9


def read(data: Tensor) -> None:
    """Touch every byte (CUDA: copy)."""
    kernels = library() if data.device.type == "cpu" else None
    if kernels is not None:
        address, size = ctypes.c_void_p(data.data_ptr()), ctypes.c_int64(data.nbytes)
        kernels.retrobench_read(address, size, ctypes.c_int32(torch.get_num_threads()))
    elif data.device.type == "cpu":
        data.sum()
    else:
        data.clone()


@cache
def flush_data(device: str) -> Tensor:
    """Twice as much memory as the last cache holds: reading it evicts everything else."""
    if device.startswith("cuda"):
        size = torch.cuda.get_device_properties(device).L2_cache_size
    else:
        size = _last_cache_bytes()
    return torch.ones(2 * size // 4, device=device)


@cache
def _probe_data(device: str) -> Tensor:
    return torch.ones(_PROBE_BYTES // 4, device=device)


def _last_cache_bytes() -> int:
    sizes = []
    for path in Path("/sys/devices/system/cpu/cpu0/cache").glob("index*/size"):
        text = path.read_text().strip()
        sizes.append(int(text[:-1]) * {"K": 2**10, "M": 2**20}.get(text[-1], 1))
    return max(sizes, default=_CACHE_BYTES)
