"""GPUs as a roofline: a step takes what its slowest resource takes.

Weights are read once for a batch. Prefill attention is exact for every method. Copies over the link
to the host hide behind the step, so this is a lower bound. GPUs that share a model add up partial
sums twice per layer (tensor parallelism), which nothing hides.
"""

import dataclasses
from dataclasses import dataclass
from typing import Any

from retrobench.core.shapes import Footprint
from retrobench.core.spec import option
from retrobench.serving.costs import Bytes
from retrobench.serving.dims import VALUE_BYTES, ModelDims
from retrobench.serving.traffic import TrafficCurve

MIN_CHUNK = 16  # tokens; adaptive chunks are multiples of it


def constant(help: str, **limits: Any) -> Any:
    """A field without a default: a machine's yaml file must give it, and say where it is from."""
    return option(dataclasses.MISSING, help, **limits)


@dataclass(frozen=True, kw_only=True)
class GpuConfig:
    """Constants of ``hardware=gpu*``, and of the GPUs beside every other machine."""

    gpus: int = constant("number of GPUs", low=1)
    flop_per_s: float = constant("16-bit matrix products of one GPU, peak", above=0)
    hbm_bytes_per_s: float = constant("memory bandwidth of one GPU, peak", above=0)
    hbm_bytes: float = constant("memory of one GPU", above=0)
    flop_efficiency: float = constant("share of this peak that is reached", above=0, high=1)
    hbm_efficiency: float = constant("share of the peak bandwidth that is reached", above=0, high=1)
    link_bytes_per_s: float = constant("link of one GPU to the host, one direction", above=0)
    host_bytes: float = constant("memory of the host", low=0)
    sum_start_s: float = constant("fixed time of one round in which GPUs add partial sums", low=0)
    sum_bytes_per_s: float = constant("bandwidth of such a round, per GPU", above=0)
    usd_per_hour: float = constant("price of the whole machine", low=0)


class Gpu:
    """``StepCost`` of GPUs that hold weights, keys and values."""

    Config = GpuConfig

    def __init__(self, config: GpuConfig, dims: ModelDims, traffic: TrafficCurve) -> None:
        self.config, self.dims, self.traffic = config, dims, traffic
        self.flop_per_s = config.gpus * config.flop_per_s * config.flop_efficiency
        self.hbm_bytes_per_s = config.gpus * config.hbm_bytes_per_s * config.hbm_efficiency
        self.link_bytes_per_s = config.gpus * config.link_bytes_per_s
        self.max_batch = 256

    @property
    def capacity(self) -> Bytes:
        """Room for keys, values and indexes: beside the weights, and on the host."""
        room = self.config.gpus * self.config.hbm_bytes - self.dims.weight_bytes
        if room <= 0:
            need = self.dims.weight_bytes / 1e9
            raise ValueError(
                f"hardware.gpus={self.config.gpus}: the weights take {need:.0f} GB and do not fit; "
                "use more GPUs or a smaller task.shape"
            )
        return room, self.config.host_bytes

    def held(self, plan: Footprint) -> Bytes:
        """A method's plan by pool."""
        return plan.device, plan.pinned + plan.host

    def linear_s(self, tokens: float, weights: float = 0.0) -> float:
        """All products with weights, for so many tokens at once."""
        if not tokens:
            return 0.0
        read = (self.dims.weight_bytes + weights) / self.hbm_bytes_per_s
        return max(self.dims.linear_flop(tokens) / self.flop_per_s, read) + self.sum_s(tokens)

    def sum_s(self, tokens: float) -> float:
        """Adding up the GPUs' partial sums: after attention and after the feed-forward part.

        A ring of n GPUs passes on 1/n of the numbers in each of n - 1 rounds.
        """
        gpus = self.config.gpus
        if gpus == 1:
            return 0.0
        passed = tokens * self.dims.width * VALUE_BYTES / gpus
        rounds = 2 * self.dims.layers * (gpus - 1)
        return rounds * (self.config.sum_start_s + passed / self.config.sum_bytes_per_s)

    def prompt_attention_s(self, chunk: int, done: int) -> float:
        """Exact attention of a piece of a prompt."""
        if not chunk:
            return 0.0
        flop_s = self.dims.attention_flop(chunk, done) / self.flop_per_s
        return max(flop_s, self.dims.kv_token_bytes * (chunk + done) / self.hbm_bytes_per_s)

    def step_s(self, batch: int, tokens: float, chunk: int = 0, done: int = 0) -> float:
        """Weights, then attention; or the link, where it is slower."""
        if not batch:
            return self.linear_s(chunk) + self.prompt_attention_s(chunk, done)
        moved = self.traffic.at(tokens / batch)
        seconds = self.linear_s(batch + chunk, moved.weights)
        seconds += batch * moved.read / self.hbm_bytes_per_s
        seconds += self.prompt_attention_s(chunk, done)
        return max(seconds, batch * max(moved.h2d, moved.d2h) / self.link_bytes_per_s)

    def chunk_tokens(self, batch: int, tokens: float, left: int, done: int) -> int:
        """As many as take no longer than reading the weights does anyway."""
        free = self.flop_per_s * self.dims.weight_bytes / self.hbm_bytes_per_s
        fitting = int(free / self.dims.linear_flop(1)) - batch
        return min(left, max(MIN_CHUNK, fitting // MIN_CHUNK * MIN_CHUNK))
