"""Attention on one machine, everything else on GPUs: which resource bounds the throughput.

The roofline of CHIME, section III (arXiv 2504.17584): two sub-batches alternate, so that a step of
one covers the attention of the other.
"""

from dataclasses import dataclass

from retrobench.serving.dims import ModelDims


@dataclass(frozen=True, slots=True, kw_only=True)
class Plane:
    """A model on GPUs, and requests of a mean and a reserved context."""

    dims: ModelDims
    flop_per_s: float
    hbm_bytes_per_s: float
    context_tokens: float  # that a step reads, on average
    reserved_tokens: float  # that memory must hold, for each request

    def batch(self, capacity_bytes: float) -> float:
        """Requests that fit."""
        return capacity_bytes / (self.dims.kv_token_bytes * self.reserved_tokens)

    def attention_rate(self, bytes_per_s: float) -> float:
        """Tokens per second of attention, whatever the batch."""
        return bytes_per_s / (self.dims.kv_token_bytes * self.context_tokens)

    def linear_rate(self, batch: float) -> float:
        """Tokens per second of everything else, with half of the batch in a step."""
        half = batch / 2
        read_s = self.dims.weight_bytes / self.hbm_bytes_per_s
        return half / max(read_s, self.dims.linear_flop(half) / self.flop_per_s)

    def rate(self, capacity_bytes: float, bytes_per_s: float) -> float:
        """Tokens per second of both together."""
        return min(self.attention_rate(bytes_per_s), self.linear_rate(self.batch(capacity_bytes)))
