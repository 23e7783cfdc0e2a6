"""The only clock: read after the device has finished."""

import time
from collections.abc import Callable
from datetime import UTC, datetime


def make_clock(*devices: str) -> Callable[[], float]:
    """A function returning seconds, synchronised with these devices at each reading."""
    gpus = [device for device in devices if device.startswith("cuda")]
    if not gpus:
        return time.perf_counter

    import torch

    def synchronised() -> float:
        for gpu in gpus:
            torch.cuda.synchronize(gpu)
        return time.perf_counter()

    return synchronised


def monotonic_s() -> float:
    """Seconds from an arbitrary start, without device synchronisation."""
    return time.perf_counter()


def utc_now() -> str:
    """UTC time as ISO 8601 with seconds."""
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
