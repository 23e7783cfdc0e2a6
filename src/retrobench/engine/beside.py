"""Building beside the model: in a thread, on a GPU on a stream of its own, too."""

import dataclasses
from collections.abc import Callable

from torch import Tensor

from retrobench.core.method import PromptLayer
from retrobench.engine.recorder import LayerTaker
from retrobench.memory.prefetch import Prefetcher


def build_beside(
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
