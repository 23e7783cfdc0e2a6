"""Where keys and values live. A store knows tokens by position, never by importance."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from retrobench.core.shapes import Footprint, KVShape


class Store(Protocol):
    """Keys and values of the served layers of one batch."""

    def append(self, layer: int, k_BGTD: Tensor, v_BGTD: Tensor) -> None:
        """Add T tokens to a layer."""
        ...

    def keys(self, layer: int) -> Tensor:
        """All keys of a layer, ``k_BGSD``."""
        ...

    def values(self, layer: int) -> Tensor:
        """All values of a layer, ``v_BGSD``."""
        ...

    def gather(self, layer: int, token_BGR: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values of chosen positions; -1 marks padding (any row may come back)."""
        ...

    def footprint(self) -> Footprint:
        """Bytes held, by place."""
        ...

    def close(self) -> None:
        """Free the memory."""
        ...


class DeviceStore:
    """One contiguous tensor per kind on the model's device, preallocated, with views per layer."""

    def __init__(self, shape: KVShape) -> None:
        self.shape = shape
        self.slot = {layer: i for i, layer in enumerate(shape.layers)}
        size = (len(shape.layers), shape.batch, shape.num_kv_heads, shape.max_tokens)
        dtype = getattr(torch, shape.dtype)
        self.k_LBGSD = torch.empty(*size, shape.head_dim, dtype=dtype, device=shape.device)
        self.v_LBGSD = torch.empty(*size, shape.head_dim, dtype=dtype, device=shape.device)
        self.lengths = [0] * len(shape.layers)

    @staticmethod
    def plan(shape: KVShape) -> Footprint:
        """Bytes before allocation."""
        return Footprint(device=shape.kv_bytes_per_token * shape.batch * shape.max_tokens)

    def append(self, layer: int, k_BGTD: Tensor, v_BGTD: Tensor) -> None:
        """Add T tokens to a layer, in place."""
        i = self.slot[layer]
        start, end = self.lengths[i], self.lengths[i] + k_BGTD.shape[2]
        assert end <= self.shape.max_tokens, "session longer than planned"
        self.k_LBGSD[i, :, :, start:end] = k_BGTD
        self.v_LBGSD[i, :, :, start:end] = v_BGTD
        self.lengths[i] = end

    def keys(self, layer: int) -> Tensor:
        """View of all keys of a layer, ``k_BGSD``."""
        i = self.slot[layer]
        return self.k_LBGSD[i, :, :, : self.lengths[i]]

    def values(self, layer: int) -> Tensor:
        """View of all values of a layer, ``v_BGSD``."""
        i = self.slot[layer]
        return self.v_LBGSD[i, :, :, : self.lengths[i]]

    def gather(self, layer: int, token_BGR: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values at ``token_BGR`` (second axis: KV heads, or query heads)."""
        groups = self.shape.num_kv_heads
        batch, heads, _ = token_BGR.shape
        row = torch.arange(batch, device=token_BGR.device)[:, None, None]
        head = torch.arange(heads, device=token_BGR.device)[None, :, None] // (heads // groups)
        index = (row, head, token_BGR.clamp_min(0))
        return self.keys(layer)[index], self.values(layer)[index]

    def footprint(self) -> Footprint:
        """Bytes held."""
        return Footprint(device=self.k_LBGSD.nbytes + self.v_LBGSD.nbytes)

    def close(self) -> None:
        """Free both tensors."""
        empty = torch.empty(0)
        self.k_LBGSD, self.v_LBGSD = empty, empty
