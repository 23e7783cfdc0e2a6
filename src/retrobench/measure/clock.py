"""The only clock: read after the device has finished."""

import time
from collections.abc import Callable
from datetime import UTC, datetime


def make_clock(device: str) -> Callable[[], float]:
    """A function returning seconds, synchronised with ``device`` at each reading."""
    if not device.startswith("cuda"):
        return time.perf_counter

    import torch

    def synchronised() -> float:
        torch.cuda.synchronize()
        return time.perf_counter()

    return synchronised


def monotonic_s() -> float:
    """Seconds from an arbitrary start, without device synchronisation."""
    return time.perf_counter()


def utc_now() -> str:
    """UTC time as ISO 8601 with seconds."""
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
