"""Processing in the banks of the GPUs' own memory, as AttAcc has it (ASPLOS 2024).

Attention of decode steps reads keys and values at the banks' bandwidth, a multiple of the
memory's. Everything else is the GPU's. The two take turns, or work on two sub-batches at a time:
then weights are read twice in a step.
"""

from dataclasses import dataclass

from retrobench.serving.dims import VALUE_BYTES
from retrobench.serving.hardware.gpu import Gpu, GpuConfig, constant


@dataclass(frozen=True, kw_only=True)
class HbmPimConfig(GpuConfig):
    """Constants of ``hardware=hbm_pim``."""

    bank_factor: float = constant("bandwidth of the banks over that of the memory", above=0)
    sub_batches: int = constant("2: one is in the banks while the GPU has the other", low=1, high=2)
    cell_pj_per_byte: float = constant("energy of reading a byte from its cells", low=0)
    wires_pj_per_byte: float = constant("energy of a byte from its bank to the GPU", low=0)
    multiply_pj: float = constant("energy of a multiplication with an addition", low=0)


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
        prompt = self.prompt_attention_s(chunk, done)
        if not batch:
            return self.linear_s(chunk) + prompt
        moved = self.traffic.at(tokens / batch)
        other = batch // 2 if self.config.sub_batches == 2 else 0
        one = batch - other

        def banks(requests: int) -> float:
            return self.attention_s(requests * moved.read)

        first = self.linear_s(one + chunk, moved.weights) + prompt
        if other:
            seconds = max(first, banks(other))
            seconds += max(self.linear_s(other, moved.weights), banks(one))
        else:
            seconds = first + banks(one)
        return max(seconds, batch * max(moved.h2d, moved.d2h) / self.link_bytes_per_s)

    def attention_j(self, num_bytes: float, *, banks: bool = True) -> float:
        """Energy of attention over so many bytes of keys and values, in the banks or on the GPU."""
        config = self.config
        products = num_bytes / VALUE_BYTES * self.dims.heads / self.dims.kv_heads
        moved = config.cell_pj_per_byte + (0.0 if banks else config.wires_pj_per_byte)
        return 1e-12 * (num_bytes * moved + products * config.multiply_pj)
