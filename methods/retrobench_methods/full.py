"""Full attention: every token, exactly. The baseline and the reference of every comparison."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from retrobench.core.budget import Budget
from retrobench.core.method import AttentionArgs, Method, Probe
from retrobench.core.shapes import DTYPE_BYTES, Footprint, KVShape
from retrobench.core.spec import option
from retrobench.engine.attention.backends import BACKENDS, Chooser, check
from retrobench.engine.attention.math import causal
from retrobench.memory.placement import DeviceStore


class Full(Method):
    """All keys and values on the model's device, attended exactly."""

    name = "full"
    budgeted = False

    @dataclass(frozen=True, kw_only=True)
    class Config:
        """Full attention has no budget."""

        backend: str = option(
            "auto",
            "who computes a decode step; auto: the fastest of what is installed, timed once per "
            "shape (sdpa below 4096 tokens); the row names it",
            choices=("auto", *BACKENDS),
        )

    def __init__(
        self,
        config: Any,
        shape: KVShape,
        probe: Probe | None = None,
        budget: Budget | None = None,
    ) -> None:
        super().__init__(config, shape, probe, budget)
        _check(config, shape)
        self.store = DeviceStore(shape)
        self.backend = Chooser(config.backend)

    @classmethod
    def plan(cls, config: Any, shape: KVShape, budget: Budget | None = None) -> Footprint:
        """K and V of all tokens, after checking that the backend can run."""
        _check(config, shape)
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
        with self.probe.span("attend"):
            out = self.backend.run(q_BHTD, keys, values, args, self.shape.pad_tokens)
        tokens = [keys.shape[2] - pad for pad in self.shape.pad_tokens]
        self.probe.live(layer, attended=sum(tokens) / len(tokens))
        per_token = 2 * self.shape.head_dim * DTYPE_BYTES[self.shape.dtype]
        self.probe.moved("kv", sum(tokens) * self.shape.num_kv_heads * per_token)
        return out

    def allocated(self) -> Footprint:
        """Bytes of the store."""
        return self.store.footprint()

    def stats(self) -> Mapping[str, Any]:
        """The backends that ran, and how long each candidate took where that was measured."""
        timed = {name: ms for times in self.backend.used.values() for name, ms in times.items()}
        return {"backend": ",".join(self.backend.used), "backend_ms": timed}

    def close(self) -> None:
        """Free the store."""
        self.store.close()


def _check(config: Any, shape: KVShape) -> None:
    """ValueError if the backend asked for cannot run here."""
    if config.backend == "auto":
        return
    dtype = getattr(torch, shape.dtype)
    reason = check(config.backend, shape.device, dtype, shape.head_dim)
    if reason is not None:
        raise ValueError(reason)
