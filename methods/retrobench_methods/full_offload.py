"""Full attention with KV in host memory, streamed whole in every step.

The floor for methods that offload: they must beat what a plain copy of everything achieves. The
next layer is copied while this one computes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from retrobench.core.budget import Budget
from retrobench.core.method import AttentionArgs, Method, Probe
from retrobench.core.shapes import Footprint, KVShape
from retrobench.core.spec import option
from retrobench.engine.attention.math import causal, dense_decode
from retrobench.memory.placement import (
    PlacementConfig,
    Tiers,
    allocate,
    free,
    kv_bytes,
    placed,
    vector_bytes,
)
from retrobench.memory.prefetch import Prefetcher


class FullOffload(Method):
    """Every token, exactly; two layers' worth of device memory."""

    name = "full_offload"
    budgeted = False

    @dataclass(frozen=True, kw_only=True)
    class Config:
        """Options of full_offload."""

        prefetch: bool = option(True, "copy a layer while the one before it computes")

    def __init__(
        self,
        config: Any,
        shape: KVShape,
        probe: Probe | None = None,
        budget: Budget | None = None,
    ) -> None:
        super().__init__(config, shape, probe, budget)
        self.place = _place(shape)
        head = (shape.batch, shape.num_kv_heads, shape.max_tokens, shape.head_dim)
        pool, buffers = (len(shape.layers), *head), (2, *head)
        self.k_LBGSD, self.v_LBGSD = (allocate(pool, shape, self.place) for _ in range(2))
        self.k_2BGSD, self.v_2BGSD = (allocate(buffers, shape, "gpu") for _ in range(2))
        self.slot = {layer: i for i, layer in enumerate(shape.layers)}
        self.lengths = [0] * len(shape.layers)
        self.turn = 0  # which buffer the next copy fills
        self.prefetcher = Prefetcher(shape.device, config.prefetch)

    @classmethod
    def plan(cls, config: Any, shape: KVShape, budget: Budget | None = None) -> Footprint:
        """All KV on the host, two layers on the device."""
        everything = kv_bytes(shape, shape.max_tokens)
        return placed(everything, _place(shape)) + Footprint(
            device=2 * everything // len(shape.layers)
        )

    def prefill(
        self, layer: int, q_BHTD: Tensor, k_BGTD: Tensor, v_BGTD: Tensor, args: AttentionArgs
    ) -> Tensor:
        """Exact attention over the prompt so far."""
        self._append(layer, k_BGTD, v_BGTD)
        i, device = self.slot[layer], q_BHTD.device
        k, v = (t[i, :, :, : self.lengths[i]].to(device) for t in (self.k_LBGSD, self.v_LBGSD))
        return causal(q_BHTD, k, v, args, self.shape.pad_tokens)

    def seal(self) -> None:
        """Start copying the first layer."""
        self._start(self.shape.layers[0])

    def decode(
        self, layer: int, q_BHTD: Tensor, k_BGTD: Tensor, v_BGTD: Tensor, args: AttentionArgs
    ) -> Tensor:
        """Exact attention over the copy of this layer and the newest token."""
        i = self.slot[layer]
        with self.probe.span("fetch_wait"):
            ready = self.prefetcher.take(layer)
        assert ready is not None, "layers come in order"
        k_BGSD, v_BGSD = ready
        old, end = self.lengths[i], self.lengths[i] + 1
        self._append(layer, k_BGTD, v_BGTD)
        self._start(self.shape.layers[(i + 1) % len(self.shape.layers)])
        k_BGSD[:, :, old:end], v_BGSD[:, :, old:end] = k_BGTD, v_BGTD
        with self.probe.span("attend"):
            out = dense_decode(
                q_BHTD, k_BGSD[:, :, :end], v_BGSD[:, :, :end], args, self.shape.pad_tokens
            )
        tokens = [end - pad for pad in self.shape.pad_tokens]
        self.probe.live(layer, attended=sum(tokens) / len(tokens))
        unit = self.shape.num_kv_heads * vector_bytes(self.shape)
        self.probe.moved("kv", sum(tokens) * unit)
        self.probe.moved("h2d", self.shape.batch * old * unit)
        self.probe.moved("d2h", self.shape.batch * unit)
        return out

    def _append(self, layer: int, k_BGTD: Tensor, v_BGTD: Tensor) -> None:
        i = self.slot[layer]
        start, end = self.lengths[i], self.lengths[i] + k_BGTD.shape[2]
        self.k_LBGSD[i, :, :, start:end] = k_BGTD.to(self.k_LBGSD.device)
        self.v_LBGSD[i, :, :, start:end] = v_BGTD.to(self.v_LBGSD.device)
        self.lengths[i] = end

    def _start(self, layer: int) -> None:
        """Begin the copy of a layer into the buffer that was used longest ago."""
        i, turn = self.slot[layer], self.turn
        self.turn = 1 - turn
        length = self.lengths[i]

        def copy() -> tuple[Tensor, ...]:
            with self.probe.span("fetch"):
                pairs = ((self.k_LBGSD, self.k_2BGSD), (self.v_LBGSD, self.v_2BGSD))
                for pool, buffer in pairs:
                    buffer[turn, :, :, :length].copy_(pool[i, :, :, :length], non_blocking=True)
            return self.k_2BGSD[turn], self.v_2BGSD[turn]

        with self.probe.span(self.prefetcher.submit_span):
            self.prefetcher.submit(layer, copy)

    def allocated(self) -> Footprint:
        """Bytes of the pool and of both buffers."""
        pool = self.k_LBGSD.nbytes + self.v_LBGSD.nbytes
        device = self.k_2BGSD.nbytes + self.v_2BGSD.nbytes
        return placed(pool, self.place) + Footprint(device=device)

    def close(self) -> None:
        """Wait for the copy in flight and free everything."""
        self.prefetcher.close()
        for pool in (self.k_LBGSD, self.v_LBGSD):
            free(pool, self.shape, self.place)
        empty = torch.empty(0)
        self.k_LBGSD = self.v_LBGSD = self.k_2BGSD = self.v_2BGSD = empty


def _place(shape: KVShape) -> str:
    return Tiers.of(PlacementConfig(placement="auto"), shape.device).place
