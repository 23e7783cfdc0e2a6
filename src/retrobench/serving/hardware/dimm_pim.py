"""Processing in the DIMMs of the host, as L3 and CHIME have it (arXiv 2504.17584, ISCA 2026).

Keys and values live in DIMMs whose banks compute decode attention. Two sub-batches alternate: while
one is on the GPU, the other is in the DIMMs. Query, key, value and output cross the link; while a
rankset is busy with the transfer, the others go on.
"""

import math
from dataclasses import dataclass
from functools import cached_property

from retrobench.core.shapes import Footprint
from retrobench.serving.costs import Bytes
from retrobench.serving.hardware.gpu import MIN_CHUNK, Gpu, GpuConfig, constant


@dataclass(frozen=True, kw_only=True)
class DimmPimConfig(GpuConfig):
    """Constants of ``hardware=dimm_pim``."""

    ranks: int = constant("ranks of all channels", low=1)
    ranksets: int = constant("ranks of a channel; one at a time transfers", low=1)
    rank_bytes_per_s: float = constant("bandwidth of a rank", above=0)
    chips: int = constant("chips of a rank", low=1)
    bank_factor: float = constant("bandwidth of the banks over that of their rank", low=1)
    level: str = constant("where attention is computed", choices=("rank", "bank"))
    bubble_free: bool = constant("spread a head over as many chips as leave no bubbles")
    relayout: str = constant(
        "what puts keys and values where the units need them: the DIMMs while they arrive, or the "
        "host, which reads and writes them once more", choices=("in_flight", "host"),
    )  # fmt: skip
    dimm_bytes: float = constant("memory of all DIMMs", above=0)
    dimm_bytes_per_s: float = constant("bandwidth between the DIMMs and the host", above=0)


class DimmPim(Gpu):
    """``StepCost`` of GPUs with such DIMMs."""

    Config = DimmPimConfig
    config: DimmPimConfig

    @property
    def capacity(self) -> Bytes:
        """The DIMMs."""
        super().capacity  # noqa: B018  # the weights fit
        return (self.config.dimm_bytes,)

    def held(self, plan: Footprint) -> Bytes:
        """Everything in the DIMMs."""
        return (plan.total,)

    def head_chips(self) -> int:
        """Chips that share a head's keys: all, or the most that leave no bubbles."""
        chips = self.config.chips
        return min(chips, bubble_free_chips(self.config, self.dims.head_dim, self.group()))

    def group(self) -> int:
        """Query heads of a KV head."""
        return self.dims.heads // self.dims.kv_heads

    @cached_property
    def score_stretch(self) -> float:
        """How much longer scoring takes than reading the keys: 1 without bubbles."""
        spread = self.head_chips() if self.config.bubble_free else self.config.chips
        sent, computed = score_s(self.config, self.dims.head_dim, self.group(), spread)
        # without a pipeline of the two they take turns
        return max(sent, computed) / computed if self.config.bubble_free else 1 + sent / computed

    def attention_s(self, num_bytes: float) -> float:
        """Keys, values and indexes read by the processing units."""
        config = self.config
        rate = config.ranks * config.rank_bytes_per_s
        if config.level == "rank":
            return num_bytes / rate
        stretch = (self.score_stretch + 1) / 2  # keys are half of it, values have no bubbles
        return num_bytes * stretch / (rate * config.bank_factor)

    def pim_s(self, batch: int, context: float, chunk: int) -> float:
        """Attention of a sub-batch, and what its transfers and a prompt's keys and values block."""
        if not batch and not chunk:
            return 0.0
        seconds = 0.0
        if batch:
            seconds = self.attention_s(batch * self.traffic.at(context).read)
        moved = self.dims.exchanged_bytes(batch) + chunk * self.dims.kv_token_bytes
        sent = moved / self.link_bytes_per_s / self.config.ranksets
        return seconds + sent + self.relayout_s(batch + chunk)

    def relayout_s(self, tokens: int) -> float:
        """Rearranging new keys and values, which attention waits for."""
        if self.config.relayout == "in_flight":
            return 0.0
        return 2 * tokens * self.dims.kv_token_bytes / self.config.dimm_bytes_per_s

    def step_s(self, batch: int, tokens: float, chunk: int = 0, done: int = 0) -> float:
        """Both halves of a step: one sub-batch on the GPU, the other in the DIMMs, then swapped.

        A prompt's piece goes with the first sub-batch; its keys and values reach the DIMMs while
        the second is there.
        """
        one, other = batch - batch // 2, batch // 2
        context = tokens / batch if batch else 0.0
        gpu = self.linear_s(one + chunk) + self.prompt_attention_s(chunk, done)
        first = max(gpu, self.pim_s(other, context, chunk))
        return first + max(self.linear_s(other), self.pim_s(one, context, 0))

    def chunk_tokens(self, batch: int, tokens: float, left: int, done: int) -> int:
        """The adaptive scheduler: the longest piece with which the GPU does not keep the DIMMs."""
        if not batch:
            return left
        one, other = batch - batch // 2, batch // 2
        low, high = 1, -(-left // MIN_CHUNK)
        while low < high:
            middle = (low + high + 1) // 2
            chunk = middle * MIN_CHUNK
            gpu = self.linear_s(one + chunk) + self.prompt_attention_s(chunk, done)
            fits = gpu <= self.pim_s(other, tokens / batch, chunk)
            low, high = (middle, high) if fits else (low, middle - 1)
        return min(left, low * MIN_CHUNK)


def score_s(
    config: DimmPimConfig, head_dim: int, group: int, head_chips: int
) -> tuple[float, float]:
    """(sending, computing) scores: seconds per key number times chips, in units of 2-byte numbers.

    ``T_comm = L n chips / B_rank`` and ``T_comp = L E ceil(n / N) / (B_chip head_chips)``, with
    units for all N = n query heads of a KV head. A rank works on ``chips / head_chips`` heads.
    """
    numbers_per_s = config.rank_bytes_per_s / 2
    chip_per_s = numbers_per_s * config.bank_factor / config.chips
    heads_at_once = config.chips / head_chips
    sent = group * config.chips / numbers_per_s
    computed = head_dim / (chip_per_s * head_chips)
    return sent / heads_at_once, computed / heads_at_once


def bubble_free_chips(config: DimmPimConfig, head_dim: int, group: int) -> int:
    """The most chips per head whose scores are sent as fast as they are computed (power of 2)."""
    bound = head_dim / (config.bank_factor / config.chips * group * config.chips)
    return 2 ** max(0, math.floor(math.log2(bound))) if bound >= 1 else 1
