"""Copies of keys and values to host memory, beside other work."""

from itertools import product
from typing import Any

import torch
from torch import Tensor


class Offload:
    """Copies that nobody waits for until ``finish``.

    On a GPU they run on a stream of their own (``aside``) or in the order of the current stream.
    ``finish`` must come before the host reads what was copied. Elsewhere a copy is done at once.
    """

    def __init__(self, device: str) -> None:
        on_gpu = torch.device(device).type == "cuda"
        self.stream: Any = torch.cuda.Stream(device) if on_gpu else None
        self._done: Any = None

    def copy(self, target_BGSD: Tensor, source_BGSD: Tensor, *, aside: bool = False) -> None:
        """Begin a copy between equal shapes; the source may be freed meanwhile, not changed."""
        if self.stream is None or not source_BGSD.is_cuda or target_BGSD.is_cuda:
            return copy_heads(target_BGSD, source_BGSD)
        stream = current = torch.cuda.current_stream(source_BGSD.device)
        if aside:
            stream = self.stream
            stream.wait_stream(current)
        with torch.cuda.stream(stream):
            copy_heads(target_BGSD, source_BGSD)
            self._done = stream.record_event()
        source_BGSD.record_stream(stream)

    def finish(self) -> None:
        """Wait until everything is where it was copied to."""
        if self._done is not None:
            if self.stream is not None:
                self.stream.synchronize()
            self._done.synchronize()
            self._done = None


def copy_heads(target_BGSD: Tensor, source_BGSD: Tensor) -> None:
    """Copy head by head: each is one contiguous run, which an engine moves by itself.

    Of a pair with gaps, torch would make copies in pageable memory and wait for them.
    """
    assert target_BGSD.dtype == source_BGSD.dtype, "a copy does not convert"
    same = target_BGSD.device == source_BGSD.device
    if same or (target_BGSD.is_contiguous() and source_BGSD.is_contiguous()):
        target_BGSD.copy_(source_BGSD, non_blocking=True)
        return
    for head in product(*map(range, source_BGSD.shape[:-2])):
        target_BGSD[head].copy_(source_BGSD[head].contiguous(), non_blocking=True)
