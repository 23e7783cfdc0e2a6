"""Full attention with KV in host memory, streamed whole in every step.

The floor for methods that offload: they must beat what a plain copy of everything achieves. The
next layer is copied while this one computes.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from retrobench.core.budget import Budget
from retrobench.core.method import AttentionArgs, Probe
from retrobench.core.shapes import Footprint, KVShape
from retrobench.core.spec import option
from retrobench.engine.attention.index import Index
from retrobench.engine.attention.selective import SelectiveMethod
from retrobench.memory.placement import allocate, host_place, kv_bytes
from retrobench.memory.prefetch import Prefetcher
from retrobench.memory.selection import Everything, Selection
from retrobench.memory.store import KVStore, ResidentStore
from retrobench.memory.transfer import copy_heads


class StreamedStore(ResidentStore):
    """A store in host memory whose layers pass through two buffers on the device, in order."""

    def __init__(self, shape: KVShape, prefetch: bool, probe: Probe) -> None:
        super().__init__(shape, host_place(shape.device))
        size = (2, shape.batch, shape.num_kv_heads, shape.max_tokens, shape.head_dim)
        self.k_2BGSD, self.v_2BGSD = (allocate(size, shape, "gpu") for _ in "kv")
        self.turn = 0  # which buffer the next copy fills
        self.current: tuple[Tensor, Tensor] = self.k_2BGSD[0], self.v_2BGSD[0]
        self.prefetcher, self.probe = Prefetcher(shape.device, prefetch), probe

    @staticmethod
    def plan(shape: KVShape) -> Footprint:
        """All KV on the host, two layers on the device."""
        buffers = 2 * kv_bytes(shape, shape.max_tokens) // len(shape.layers)
        return ResidentStore.plan(shape, host_place(shape.device)) + Footprint(device=buffers)

    def start(self, layer: int) -> None:
        """Begin the copy of a layer into the buffer that was used longest ago."""
        i, turn = self.index[layer], self.turn
        self.turn = 1 - turn
        length = self.used[i]

        def copy() -> tuple[Tensor, ...]:
            with self.probe.span("fetch"):
                for pool, buffer in ((self.k[i][0], self.k_2BGSD), (self.v[i][0], self.v_2BGSD)):
                    copy_heads(buffer[turn, :, :, :length], pool[:, :, :length])
            return self.k_2BGSD[turn], self.v_2BGSD[turn]

        with self.probe.span(self.prefetcher.submit_span):
            self.prefetcher.submit(layer, copy)

    def append(self, layer: int, k_BGTD: Tensor, v_BGTD: Tensor) -> None:
        """Take the layer's copy, add the token to both, and start the next layer's copy."""
        i, layers = self.index[layer], self.shape.layers
        with self.probe.span("fetch_wait"):
            ready = self.prefetcher.take(layer)
        assert ready is not None, "layers come in order"
        super().append(layer, k_BGTD, v_BGTD)
        self.start(layers[(i + 1) % len(layers)])
        end = self.used[i]
        for buffer, new in zip(ready, (k_BGTD, v_BGTD), strict=True):
            buffer[:, :, end - 1 : end] = new
        self.current = ready[0][:, :, :end], ready[1][:, :, :end]

    def keys(self, layer: int) -> Tensor:
        """All keys of the layer at hand, on the device."""
        return self.current[0]

    def values(self, layer: int) -> Tensor:
        """All values of the layer at hand, on the device."""
        return self.current[1]

    def footprint(self) -> Footprint:
        """Bytes of the host's part and of both buffers."""
        buffers = self.k_2BGSD.nbytes + self.v_2BGSD.nbytes
        return super().footprint() + Footprint(device=buffers)

    def close(self) -> None:
        """Wait for the copy in flight and free everything."""
        self.prefetcher.close()
        super().close()
        self.k_2BGSD = self.v_2BGSD = torch.empty(0)
        self.current = self.k_2BGSD, self.v_2BGSD


class EverythingIndex(Index):
    """Chooses all tokens."""

    def select(self, layer: int, q_BHTD: Tensor, store: KVStore, args: AttentionArgs) -> Selection:
        """All of them."""
        return Everything()


class FullOffload(SelectiveMethod):
    """Every token, exactly; two layers' worth of device memory."""

    name = "full_offload"
    index_class = EverythingIndex
    budgeted = False

    @dataclass(frozen=True, kw_only=True)
    class Config:
        """Options of full_offload."""

        prefetch: bool = option(True, "copy a layer while the one before it computes")

    def make_store(self) -> KVStore:
        """Host memory, streamed."""
        return StreamedStore(self.shape, self.config.prefetch, self.probe)

    @classmethod
    def plan(cls, config: Any, shape: KVShape, budget: Budget | None = None) -> Footprint:
        """All KV on the host, two layers on the device."""
        return StreamedStore.plan(shape)

    def finish_build(self) -> None:
        """Start copying the first layer."""
        super().finish_build()
        assert isinstance(self.store, StreamedStore)
        self.store.start(self.shape.layers[0])

    def count(
        self, layer: int, tokens: int | Tensor, heads: int, selection: Selection, **more: Any
    ) -> None:
        """Also the copies: the layer came down, its newest token goes up."""
        token_bytes = self.shape.batch * self.shape.num_kv_heads * self.store.bytes_per_token()
        copied = (self.store.length(layer) - 1) * token_bytes
        super().count(layer, tokens, heads, selection, h2d=copied, d2h=token_bytes, **more)
