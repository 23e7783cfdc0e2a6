"""Speed: one sample per context length and batch size. Nothing is answered or scored.

This task says which model shape, context and batch are timed; ``retrobench.evaluate.speed`` times
them. A named shape needs no weights, because its keys and values are synthetic.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

from retrobench.core.spec import option
from retrobench.core.task import Prompt, Sample, Task
from retrobench.serving.dims import DIMS

# attention geometry of public models: (query heads, KV heads, head dim)
SHAPES = {name: (dims.heads, dims.kv_heads, dims.head_dim) for name, dims in DIMS.items()}


@dataclass(frozen=True, kw_only=True)
class SpeedConfig:
    """Options of ``task.*``."""

    shape: str = option(
        "llama31_8b",
        "a model's attention shape, with synthetic clustered keys and values and no weights; "
        "model: the loaded model end to end, on random token ids",
        choices=(*SHAPES, "model"),
    )
    context: tuple[int, ...] = option((8192, 16384, 32768), "tokens in the cache", low=64)
    batch: tuple[int, ...] = option((1,), "sequences per step, each with its own data", low=1)
    layers: int = option(1, "layers of a synthetic shape; a step is all of them", low=1)
    dtype: str = option(
        "bfloat16", "dtype of a synthetic shape", choices=("float32", "bfloat16", "float16")
    )
    steps: int = option(15, "timed decode steps", low=3)
    warmup: int = option(3, "decode steps before the timed ones", low=1)
    error_steps: int = option(
        3, "timed steps whose output is compared with exact attention in float64 (not of a model)",
        low=0,
    )  # fmt: skip
    cold: bool = option(
        True, "flush the processor's caches before each timed call (synthetic shapes)"
    )
    drift: float = option(
        0.0,
        "correlation of a query with that of the step before (synthetic shapes), which sets the "
        "hit ratio of a block cache: drift * previous + sqrt(1 - drift^2) * fresh",
        low=0,
        high=1,
        added=True,
    )
    seed: int = option(0, "seed of the data", low=0)


class TimedTask(Task):
    """A task that is timed: nothing is answered."""

    measure = "latency"
    version: ClassVar[int] = 1
    """Of its inputs: raise it when they change."""

    def fingerprint(self, prompt: Prompt) -> str:
        """Version of the inputs."""
        return f"{self.name}-{self.version}"

    def sample(self, name: str, length: int = 0, new_tokens: int = 1, **meta: Any) -> Sample:
        """A sample without a prompt."""
        return Sample(id=name, task=self.name, max_new_tokens=new_tokens, length=length, meta=meta)

    def score(self, sample: Sample, text: str) -> float:
        """Raises NotImplementedError: there is no answer."""
        raise NotImplementedError(f"task={self.name} is not scored")


class SpeedTask(TimedTask):
    """Decode latency and throughput, index build, memory and bytes."""

    name = "speed"
    Config = SpeedConfig

    def samples(self, prompt: Prompt) -> Iterator[Sample]:
        """One sample for every context and batch size."""
        for context in self.config.context:
            for batch in self.config.batch:
                name, steps = f"speed-{context}x{batch}", self.config.warmup + self.config.steps
                yield self.sample(name, context, steps, batch=batch, shape=self.config.shape)

    def model_identity(self) -> dict[str, Any] | None:
        """The shape in place of a model, unless the model itself is timed."""
        if self.config.shape == "model":
            return None
        drift = f", drift {self.config.drift:g}" if self.config.drift else ""
        return {"name": f"{self.config.shape} shape{drift}", "layers": self.config.layers}
