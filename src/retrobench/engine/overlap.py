"""Building overlapped with the prefill: in a thread, on a GPU also on a stream of its own."""

import dataclasses
from collections.abc import Callable

from torch import Tensor

from retrobench.core.method import PromptLayer
from retrobench.core.shapes import Footprint, KVShape
from retrobench.engine.recorder import LayerTaker
from retrobench.memory.prefetch import Prefetcher


def build_overlapped(
    run: Callable[[LayerTaker], None], build: Callable[[int, PromptLayer], None], device: str
) -> None:
    """Run a prefill; build from each layer while the next one computes."""
    worker, waiting = Prefetcher(device, enabled=True), []

    def take(layer: int, part: PromptLayer) -> None:
        wait()

        def job() -> tuple[Tensor, ...]:
            build(layer, part)
            values = (getattr(part, field.name) for field in dataclasses.fields(part))
            return tuple(value for value in values if isinstance(value, Tensor))  # alive till then

        worker.submit(layer, job)
        waiting.append(layer)

    def wait() -> None:
        while waiting:
            worker.take(waiting.pop())

    try:
        run(take)
        wait()
    finally:
        worker.close()


def waiting_bytes(shape: KVShape, held: Footprint, streamed: bool) -> int:
    """Keys and values of the prompt that wait on the device beyond what a session will hold.

    Streamed, two layers. Else all layers wait when the first one is built, and one when the last
    one is; a session that holds just as much keeps the prompt's own memory.
    """
    layer = shape.layer_token_bytes * shape.batch * shape.max_tokens
    if streamed:
        return 2 * layer
    whole = layer * len(shape.layers)
    kept = held.total if shape.device == "cpu" else held.device
    return 0 if kept == whole else max(layer, whole + layer - kept)
