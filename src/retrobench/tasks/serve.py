"""Serve: requests that arrive while others are served. One sample per request rate.

Nothing is answered: ``retrobench.evaluate.replay`` simulates the queue, batches and memory with the
step times of ``hardware=``, and every row says that it is a replay.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from retrobench.core.cell import digest
from retrobench.core.spec import choice, option, share
from retrobench.core.task import Prompt, Sample
from retrobench.serving import requests as drawn
from retrobench.serving.dims import DIMS
from retrobench.serving.requests import PRESETS, Request
from retrobench.tasks.speed import TimedTask

LARGEST = "largest"  # the sample that looks for the largest rate


@dataclass(frozen=True, kw_only=True)
class ServeConfig:
    """Options of ``task.*``."""

    shape: str = option(
        "llama31_8b",
        "sizes of a public model, without weights; model: the model of this cell (needed for "
        "hardware=measured)",
        choices=(*DIMS, "model"),
    )
    arrivals: str = choice(
        ("poisson", "gamma", "closed"),
        "poisson; gamma, see task.burstiness; closed: task.clients ask again when answered",
    )
    rate: tuple[float, ...] = option(
        (0.5, 1.0, 2.0, 4.0), "requests per second; 0: as task.trace has them", low=0
    )
    burstiness: float = option(
        1.0, "shape of gamma arrivals: below 1 in bursts, above 1 evenly", above=0
    )
    clients: int = option(4, "arrivals=closed: number of clients", low=1)
    trace: str = option(
        "", "file of requests (CSV or JSONL: arrival_s, input_tokens, output_tokens)"
    )
    lengths: str = option(
        "openthoughts_math",
        "lengths of prompts and answers where there is no trace. fixed: input_tokens and "
        "output_tokens; the others: drawn like those of a reasoning data set (docs/serving.md)",
        choices=("fixed", *PRESETS),
    )
    input_tokens: int = option(1024, "lengths=fixed: tokens of a prompt", low=1)
    output_tokens: int = option(128, "lengths=fixed: tokens of an answer", low=1)
    requests: int = option(500, "requests of a replay (of a trace: at most)", low=1)
    max_context: int = option(32768, "most tokens of a request; drawn lengths are cut", low=2)
    max_batch: int = option(256, "most requests in a step; fewer where fewer were measured", low=1)
    chunked: bool = option(
        False, "prefill prompts in pieces beside decode steps (the cost model sets their length); "
        "else whole, while the others wait"
    )  # fmt: skip
    reserve: bool = option(
        False, "reserve memory for the whole answer at admission; else block by block, and preempt "
        "the newest request if memory runs out"
    )  # fmt: skip
    block_tokens: int = option(256, "tokens by which a request's memory grows", low=1)
    slo_ttft_s: float = option(
        2.0, "a good request's time to first token (MLPerf Inference, Llama-2-70B, server)",
        above=0,
    )  # fmt: skip
    slo_tpot_s: float = option(
        0.2, "a good request's time per token after it (MLPerf Inference, Llama-2-70B, server)",
        above=0,
    )  # fmt: skip
    good_share: float = share(0.9, "share of requests that must be good at the largest rate")
    largest_rate: bool = option(True, "also find the largest rate with task.good_share")
    seed: int = option(0, "seed of arrivals and lengths", low=0)

    def __post_init__(self) -> None:
        if self.trace and self.arrivals == "gamma":
            raise ValueError("arrivals=gamma: a trace has its own; leave one of them out")
        if 0 in self.rate and not self.trace:
            raise ValueError("rate=0 means as the trace has it: name one with task.trace=FILE")


class ServeTask(TimedTask):
    """Latency under load, replayed."""

    name = "serve"
    measure = "replay"
    Config = ServeConfig
    config: ServeConfig

    def fingerprint(self, prompt: Prompt) -> str:
        """Version of the drawing, and the requests of a trace."""
        if not self.config.trace:
            return super().fingerprint(prompt)
        trace = drawn.read_trace(Path(self.config.trace))
        return digest(
            [self.version, [(r.arrival_s, r.input_tokens, r.output_tokens) for r in trace]]
        )

    def samples(self, prompt: Prompt) -> Iterator[Sample]:
        """One for each rate (one of all for closed clients), and the largest rate."""
        config = self.config
        if config.arrivals == "closed":
            yield self.sample(f"closed-{config.clients}", clients=config.clients)
            return
        for rate in config.rate:
            yield self.sample(f"rate-{rate:g}", rate=rate)
        if config.largest_rate:
            yield self.sample(LARGEST, rate=None)

    def model_identity(self) -> dict[str, Any] | None:
        """The shape in place of a model, unless the model itself is meant."""
        return None if self.config.shape == "model" else {"name": self.config.shape}

    def requests(self, rate_per_s: float) -> list[Request]:
        """What is asked at a rate: the same lengths at every rate, and arrivals that scale."""
        config = self.config
        rng = np.random.default_rng(config.seed)
        if config.trace:
            asked = drawn.read_trace(Path(config.trace))[: config.requests]
            _check_lengths(asked, config.max_context)
            return drawn.at_rate(asked, rate_per_s) if rate_per_s else asked
        if config.lengths == "fixed":
            sizes = [(config.input_tokens, config.output_tokens)] * config.requests
        else:
            lengths = PRESETS[config.lengths]
            sizes = drawn.drawn_lengths(lengths, config.requests, config.max_context, rng)
        burstiness = config.burstiness if config.arrivals == "gamma" else 1.0
        times = drawn.arrivals(config.requests, rate_per_s or 1.0, burstiness, rng).tolist()
        asked = [Request(at, *size) for at, size in zip(times, sizes, strict=True)]
        _check_lengths(asked, config.max_context)
        return asked


def _check_lengths(asked: list[Request], max_context: int) -> None:
    longest = max(r.input_tokens + r.output_tokens for r in asked)
    if longest > max_context:
        raise ValueError(
            f"a request holds {longest} tokens, more than task.max_context={max_context}: raise it"
        )
