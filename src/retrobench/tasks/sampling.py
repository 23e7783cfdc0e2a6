"""Options of benchmarks that make their samples for the tokenizer at hand."""

from __future__ import annotations

from dataclasses import dataclass

from retrobench.core.spec import option


@dataclass(frozen=True, kw_only=True)
class SamplingConfig:
    """What every such benchmark can be asked for."""

    length: tuple[int, ...] = option(
        (4096,), "context lengths in tokens, answer included", low=512, high=4_194_304
    )
    samples: int = option(1, "samples per length and task, or depth", low=1)
    seed: int = option(42, "seed of the generator", low=0)
    stand_in: bool = option(
        True, "use labelled stand-ins where data files are missing; false: an error instead"
    )
