"""One fetch in flight per layer: a thread on the CPU, and a side stream where there is a GPU."""

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import torch
from torch import Tensor

Job = Callable[[], tuple[Tensor, ...]]


class Prefetcher:
    """Runs jobs beside the model. Off, ``submit`` runs them at once."""

    def __init__(self, device: str, enabled: bool) -> None:
        self._pool = ThreadPoolExecutor(1, "prefetch") if enabled else None
        on_gpu = torch.device(device).type == "cuda"
        self._stream: Any = torch.cuda.Stream(device) if enabled and on_gpu else None
        self._jobs: dict[int, Future[tuple[tuple[Tensor, ...], Any]]] = {}
        self._ready: dict[int, tuple[Tensor, ...]] = {}

    @property
    def submit_span(self) -> str:
        """Name of the span of a ``submit``: off, the model waits there for the whole fetch."""
        return "fetch_wait" if self._pool is None else "submit"

    def submit(self, layer: int, job: Job) -> None:
        """Start a layer's fetch. What it reads must not change until ``take``."""
        if self._pool is None:
            self._ready[layer] = job()
            return
        before = None
        if self._stream is not None:
            before = torch.cuda.current_stream(self._stream.device).record_event()
        self._jobs[layer] = self._pool.submit(self._run, job, before)

    def _run(self, job: Job, before: Any) -> tuple[tuple[Tensor, ...], Any]:
        with torch.inference_mode():  # the mode is per thread
            if self._stream is None:
                return job(), None
            with torch.cuda.stream(self._stream):
                self._stream.wait_event(before)
                result = job()
                return result, self._stream.record_event()

    def take(self, layer: int) -> tuple[Tensor, ...] | None:
        """The layer's fetch, waited for; None if none was started."""
        if layer in self._ready:
            return self._ready.pop(layer)
        future = self._jobs.pop(layer, None)
        if future is None:
            return None
        result, done = future.result()
        if done is not None:
            current = torch.cuda.current_stream(self._stream.device)
            current.wait_event(done)
            for tensor in result:
                if tensor.is_cuda:
                    tensor.record_stream(current)
        return result

    def close(self) -> None:
        """Wait for what is in flight and end the thread."""
        if self._pool is not None:
            self._pool.shutdown(wait=True)
        self._jobs.clear()
        self._ready.clear()
