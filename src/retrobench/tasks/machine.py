"""Machine: what this machine can do at most, and what each kernel reaches of it.

One sample per case and size; no method, no model and no answer is involved. What is measured is up
to ``retrobench.evaluate.machine``.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from retrobench.core.spec import option
from retrobench.core.task import Prompt, Sample
from retrobench.tasks.speed import SHAPES, TimedTask

CEILINGS = ("copy", "read", "launch")
PINNED = ("pinned_engine", "pinned_kernel")
KERNELS = ("cluster_select", "wave_attention", "wave_step", "dense_decode", "segmented_kmeans")


@dataclass(frozen=True, kw_only=True)
class MachineConfig:
    """Options of ``task.*``."""

    cases: tuple[str, ...] = option(
        (*CEILINGS, *KERNELS),
        "copy, read: the device's memory; launch: one dependent operation of a graph; "
        "pinned_engine, pinned_kernel: page-locked host memory read by the copy engine and by a "
        "kernel, in random pages (CUDA); the others: a kernel at task.shape",
        choices=(*CEILINGS, *PINNED, *KERNELS),
    )
    size_gib: float = option(1.0, "memory that copy and read touch", above=0)
    pool_gib: tuple[float, ...] = option(
        (1.0,), "host memory that pinned_engine and pinned_kernel read from", above=0
    )
    shape: str = option("llama31_8b", "a model's attention shape", choices=tuple(SHAPES))
    context: tuple[int, ...] = option((32768,), "tokens that a kernel works on", low=64)
    batch: tuple[int, ...] = option((1,), "sequences that a kernel works on", low=1)
    dtype: str = option(
        "bfloat16", "dtype of a kernel's inputs", choices=("float32", "bfloat16", "float16")
    )
    repeats: int = option(20, "timed calls", low=3)
    seed: int = option(0, "seed of the inputs", low=0)


class MachineTask(TimedTask):
    """Bandwidth ceilings, and time and bytes of each kernel after its parity."""

    name = "machine"
    Config = MachineConfig

    def samples(self, prompt: Prompt) -> Iterator[Sample]:
        """Every case: ceilings once, pinned reads per pool, kernels per context and batch."""
        config = self.config
        for case in config.cases:
            if case in CEILINGS:
                yield self.sample(case, case=case)
            elif case in PINNED:
                for pool in config.pool_gib:
                    yield self.sample(f"{case}-{pool:g}GiB", case=case, pool_gib=pool)
            else:
                for context in config.context:
                    for batch in config.batch:
                        name = f"{case}-{context}x{batch}"
                        yield self.sample(name, context, case=case, batch=batch)

    def model_identity(self) -> dict[str, Any] | None:
        """No model is involved."""
        return {"name": "machine"}
