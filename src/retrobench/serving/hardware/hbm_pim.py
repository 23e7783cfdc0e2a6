"""Processing in the banks of the GPUs' own memory, as AttAcc has it (ASPLOS 2024).

Attention of decode steps reads keys and values at the banks' bandwidth, a multiple of the
memory's. Everything else is the GPU's; within a batch the two take turns.
"""

from dataclasses import dataclass

from retrobench.serving.hardware.constants import constant
from retrobench.serving.hardware.gpu import Gpu, GpuConfig


@dataclass(frozen=True, kw_only=True)
class HbmPimConfig(GpuConfig):
    """Constants of ``hardware=hbm_pim``."""

    bank_factor: float = constant("bandwidth of the banks over that of the memory", above=0)


class HbmPim(Gpu):
    """``StepCost`` of such GPUs."""

    Config = HbmPimConfig
    config: HbmPimConfig

    def attention_s(self, num_bytes: float) -> float:
        """Keys, values and indexes read in the banks."""
        rate = self.config.gpus * self.config.hbm_bytes_per_s * self.config.bank_factor
        return num_bytes / rate

    def step_s(self, batch: int, tokens: float, chunk: int = 0, done: int = 0) -> float:
        """Weights on the GPU, attention in the banks."""
        seconds = self.prompt_attention_s(chunk, done)
        if not batch:
            return self.linear_s(chunk) + seconds
        moved = self.traffic.at(tokens / batch)
        seconds += self.linear_s(batch + chunk, moved.weights)
        seconds += self.attention_s(batch * moved.read)
        return max(seconds, batch * max(moved.h2d, moved.d2h) / self.link_bytes_per_s)
