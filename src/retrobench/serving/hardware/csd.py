"""Drives that compute attention, as InstInfer has them (arXiv 2409.04992, HPCA 2025).

Keys and values live in flash; query, key, value and output cross the drive's link; the GPU does
the rest. Drives share the KV heads. Pages are read whole; filters pass on what was chosen, faster
than a channel reads, to units that multiply it. Within a batch GPU, link, flash and units take
turns.
"""

import math
from dataclasses import dataclass

from retrobench.core.shapes import Footprint
from retrobench.serving.costs import Bytes
from retrobench.serving.dims import VALUE_BYTES
from retrobench.serving.hardware.gpu import Gpu, GpuConfig, constant
from retrobench.serving.traffic import Traffic


@dataclass(frozen=True, kw_only=True)
class CsdConfig(GpuConfig):
    """Constants of ``hardware=csd``."""

    drives: int = constant("number of drives", low=1)
    flash_channels: int = constant("flash channels of a drive", low=1)
    channel_bytes_per_s: float = constant("bandwidth of a flash channel, peak", above=0)
    read_efficiency: float = constant("share of it that decode steps reach", above=0, high=1)
    drive_link_bytes_per_s: float = constant("link of a drive to the GPU", above=0)
    write_bytes_per_s: float = constant("bandwidth of writing keys and values to a drive", above=0)
    flash_bytes: float = constant("capacity of a drive", above=0)
    key_copies: int = constant("times that keys are stored", low=1)
    engine_flop_per_s: float = constant("operations of a drive's units", above=0)
    engine_hidden: bool = constant("true: units compute while flash is read; false: after it")
    weights_on: str = constant(
        "where weights are; host: each step reads them over the link", choices=("gpu", "host")
    )


class Csd(Gpu):
    """``StepCost`` of a GPU with such drives."""

    Config = CsdConfig
    config: CsdConfig

    @property
    def capacity(self) -> Bytes:
        """Flash. Of the GPU's memory nothing but weights and activations is asked."""
        if self.config.weights_on == "gpu":
            super().capacity  # noqa: B018  # the weights fit
        return (self.config.drives * self.config.flash_bytes,)

    def held(self, plan: Footprint) -> Bytes:
        """Everything on the drives, keys in all their copies."""
        return (plan.total * (self.config.key_copies + 1) / 2,)

    def head_share(self) -> float:
        """Share of the KV heads on the drive that has most of them."""
        heads = self.dims.kv_heads
        return math.ceil(heads / self.config.drives) / heads

    def flash_s(self, num_bytes: float) -> float:
        """Reading pages, spread over the drives by heads."""
        drive = self.config.flash_channels * self.config.channel_bytes_per_s
        return num_bytes * self.head_share() / (drive * self.config.read_efficiency)

    def engine_s(self, num_bytes: float) -> float:
        """Products with numbers that passed the filters: two operations for each query head."""
        flop = num_bytes / VALUE_BYTES * 2 * self.dims.heads / self.dims.kv_heads
        return flop * self.head_share() / self.config.engine_flop_per_s

    def drive_s(self, batch: int, moved: Traffic) -> float:
        """Attention of a batch in the drive that has most to do."""
        read, computed = self.flash_s(batch * moved.flash), self.engine_s(batch * moved.kv)
        return max(read, computed) if self.config.engine_hidden else read + computed

    def gpu_s(self, tokens: float, weights: float = 0.0) -> float:
        """All products with weights, wherever these are."""
        on_host = self.config.weights_on == "host"
        over_link = (self.dims.weight_bytes + weights) / self.link_bytes_per_s if on_host else 0.0
        return max(self.linear_s(tokens, weights), over_link)

    def step_s(self, batch: int, tokens: float, chunk: int = 0, done: int = 0) -> float:
        """GPU, link and drive one after the other; a prompt is written while it is computed."""
        seconds = 0.0
        if chunk:
            rate = self.config.write_bytes_per_s / self.head_share()
            written = chunk * self.dims.kv_token_bytes * (self.config.key_copies + 1) / 2
            computed = self.gpu_s(chunk) + self.prompt_attention_s(chunk, done)
            seconds = max(computed, written / rate)
        if not batch:
            return seconds
        moved = self.traffic.at(tokens / batch)
        seconds += self.gpu_s(batch, moved.weights) + batch * moved.index / self.hbm_bytes_per_s
        link = self.dims.exchanged_bytes(batch) * self.head_share()
        return seconds + self.drive_s(batch, moved) + link / self.config.drive_link_bytes_per_s
