"""Full attention: every token, exactly. The baseline and the reference of every comparison."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from retrobench.core.budget import Budget
from retrobench.core.method import AttentionArgs, Method, Probe
from retrobench.core.shapes import DTYPE_BYTES, Footprint, KVShape
from retrobench.engine.attend import causal, dense_decode
from retrobench.engine.placement import DeviceStore


class Full(Method):
    """All keys and values on the model's device, attended exactly."""

    name = "full"

    @dataclass(frozen=True, kw_only=True)
    class Config:
        """No options: full attention has no budget."""

    def __init__(
        self,
        config: Any,
        shape: KVShape,
        probe: Probe | None = None,
        budget: Budget | None = None,
    ) -> None:
        super().__init__(config, shape, probe, budget)
        self.store = DeviceStore(shape)

    @classmethod
    def plan(cls, config: Any, shape: KVShape, budget: Budget | None = None) -> Footprint:
        """K and V of all tokens."""
        return DeviceStore.plan(shape)

    def prefill(
        self, layer: int, q_BHTD: Tensor, k_BGTD: Tensor, v_BGTD: Tensor, args: AttentionArgs
    ) -> Tensor:
        """Exact attention over the prompt so far."""
        self.store.append(layer, k_BGTD, v_BGTD)
        keys, values = self.store.keys(layer), self.store.values(layer)
        return causal(q_BHTD, keys, values, args, self.shape.pad_tokens)

    def decode(
        self, layer: int, q_BHTD: Tensor, k_BGTD: Tensor, v_BGTD: Tensor, args: AttentionArgs
    ) -> Tensor:
        """Exact attention over everything."""
        self.store.append(layer, k_BGTD, v_BGTD)
        keys, values = self.store.keys(layer), self.store.values(layer)
        out = dense_decode(q_BHTD, keys, values, args, self.shape.pad_tokens)
        tokens = [keys.shape[2] - pad for pad in self.shape.pad_tokens]
        self.probe.live(layer, attended=sum(tokens) / len(tokens))
        per_token = 2 * self.shape.head_dim * DTYPE_BYTES[self.shape.dtype]
        self.probe.moved("kv", sum(tokens) * self.shape.num_kv_heads * per_token)
        return out

    def allocated(self) -> Footprint:
        """Bytes of the store."""
        return self.store.footprint()

    def close(self) -> None:
        """Free the store."""
        self.store.close()
