"""Where keys and values live. A store knows tokens by position, never by importance."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from retrobench.core.shapes import DTYPE_BYTES, Footprint, KVShape
from retrobench.core.spec import option
from retrobench.memory.page_table import POLICIES

PLACEMENTS = ("auto", "gpu", "pinned", "cpu")
MANAGERS = ("auto", "none", "host", "device")


@dataclass(frozen=True, kw_only=True)
class PlacementConfig:
    """Options of every method whose keys and values may leave the accelerator."""

    placement: str = option(
        "gpu",
        "where keys and values live: gpu, the model's device; pinned or cpu, page-locked or "
        "pageable host memory; auto, pinned for a model on a GPU and cpu otherwise",
        choices=PLACEMENTS,
    )
    cache: str = option(
        "auto",
        "fast copy of recently used pages: none, managed by the host, managed by the device; "
        "auto: device where the model is on a GPU and its KV is not, else none",
        choices=MANAGERS,
    )
    cache_frac: float = option(
        0.05, "share of the KV cache that the fast copy holds", above=0, high=1
    )
    page_tokens: int = option(8, "tokens per page, the unit of the fast copy", low=1, high=256)
    eviction: str = option(
        "lru", "which page leaves the fast copy (fifo and lfu: cache=host only)", choices=POLICIES
    )
    cache_bound: bool = option(
        False, "also record the accesses and report the hit ratio of the best policy (Belady)"
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Tiers:
    """Placement options, decided for one device: ``place`` and ``manager`` are never auto."""

    place: str
    manager: str
    page_tokens: int
    cache_frac: float
    eviction: str
    record: bool

    @classmethod
    def of(cls, config: PlacementConfig, device: str) -> Tiers:
        """ValueError for combinations that do not exist."""
        on_gpu = torch.device(device).type == "cuda"
        place = config.placement
        if place == "auto":
            place = "pinned" if on_gpu else "cpu"
        manager = config.cache
        if manager == "auto":
            manager = "none" if place == "gpu" or not on_gpu else "device"
            if manager == "device" and config.eviction != "lru":
                manager = "host"
        if manager == "device" and config.eviction != "lru":
            raise ValueError(
                f"method.eviction={config.eviction} needs method.cache=host: the device-managed "
                "cache knows lru only"
            )
        return cls(
            place=place,
            manager=manager,
            page_tokens=config.page_tokens,
            cache_frac=config.cache_frac,
            eviction=config.eviction,
            record=config.cache_bound,
        )

    @property
    def cached(self) -> bool:
        """Whether there is a fast copy."""
        return self.manager != "none"


@dataclass(frozen=True, slots=True, kw_only=True)
class Traffic:
    """What one layer's fast tier did in a step, all rows and KV heads together, in pages."""

    layer: int
    hits: int
    misses: int
    evictions: int
    h2d_bytes: int


class Store(Protocol):
    """Keys and values of the served layers of one batch."""

    def append(self, layer: int, k_BGTD: Tensor, v_BGTD: Tensor) -> None:
        """Add T tokens to a layer."""
        ...

    def keys(self, layer: int) -> Tensor:
        """All keys of a layer, ``k_BGSD``, where they live."""
        ...

    def values(self, layer: int) -> Tensor:
        """All values of a layer, ``v_BGSD``, where they live."""
        ...

    def gather(self, layer: int, token_BGR: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values of chosen positions, on the model's device.

        -1 marks padding (any row may come back). The second axis is KV heads or query heads.
        """
        ...

    def offload(self, layer: int) -> None:
        """The prompt of a layer is indexed: move it to where it shall live."""
        ...

    def traffic(self) -> Sequence[Traffic]:
        """What moved between tiers since the last call; nothing if there is one tier."""
        ...

    def footprint(self) -> Footprint:
        """Bytes held, by place."""
        ...

    def close(self) -> None:
        """Free the memory."""
        ...


def allocate(size: Sequence[int], shape: KVShape, place: str) -> Tensor:
    """Uninitialised KV memory of the shape's dtype. ``free`` gives pinned memory back.

    Pinned memory is registered at its exact size: torch's pinned allocator rounds up to powers of
    two, which at this scale is tens of gigabytes. RuntimeError if the driver refuses.
    """
    dtype = getattr(torch, shape.dtype)
    if place == "gpu":
        return torch.empty(*size, dtype=dtype, device=shape.device)
    tensor = torch.empty(*size, dtype=dtype)
    if _pinnable(shape, place) and tensor.nbytes:
        code = int(_cuda_runtime().cudaHostRegister(tensor.data_ptr(), tensor.nbytes, 0))
        if code:
            raise RuntimeError(
                f"cudaHostRegister refused {tensor.nbytes / 2**30:.2f} GiB (error {code}): raise "
                "the locked-memory limit (ulimit -l) or use method.placement=cpu"
            )
    return tensor


def free(tensor: Tensor, shape: KVShape, place: str) -> None:
    """Undo the registration of pinned memory; the tensor must not be used any more."""
    if _pinnable(shape, place) and tensor.nbytes:
        _cuda_runtime().cudaHostUnregister(tensor.data_ptr())


def _cuda_runtime() -> Any:
    return torch.cuda.cudart()


def _pinnable(shape: KVShape, place: str) -> bool:
    return place == "pinned" and torch.device(shape.device).type == "cuda"


def placed(num_bytes: int, place: str) -> Footprint:
    """``num_bytes`` at a place, as a footprint."""
    kind = {"gpu": "device", "pinned": "pinned", "cpu": "host"}[place]
    return Footprint(**{kind: num_bytes})


def kv_bytes(shape: KVShape, tokens: int) -> int:
    """K and V bytes of ``tokens`` tokens in every row, KV head and layer."""
    return shape.kv_bytes_per_token * shape.batch * tokens


def vector_bytes(shape: KVShape) -> int:
    """K and V bytes of one token in one KV head."""
    return 2 * shape.head_dim * DTYPE_BYTES[shape.dtype]


class DeviceStore:
    """One contiguous tensor per kind where the model computes, with views per layer.

    On a CPU-only machine ``place`` may also be host memory, which is the same memory.
    """

    def __init__(self, shape: KVShape, place: str = "gpu") -> None:
        self.shape, self.place = shape, place
        self.slot = {layer: i for i, layer in enumerate(shape.layers)}
        size = (len(shape.layers), shape.batch, shape.num_kv_heads, shape.max_tokens)
        self.k_LBGSD = allocate((*size, shape.head_dim), shape, place)
        self.v_LBGSD = allocate((*size, shape.head_dim), shape, place)
        self.lengths = [0] * len(shape.layers)

    @staticmethod
    def plan(shape: KVShape, place: str = "gpu") -> Footprint:
        """Bytes before allocation."""
        return placed(kv_bytes(shape, shape.max_tokens), place)

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
        index = head_index(token_BGR, self.shape.num_kv_heads)
        return self.keys(layer)[index], self.values(layer)[index]

    def offload(self, layer: int) -> None:
        """Nothing moves."""

    def traffic(self) -> Sequence[Traffic]:
        """One tier: nothing moves."""
        return ()

    def footprint(self) -> Footprint:
        """Bytes held."""
        return placed(self.k_LBGSD.nbytes + self.v_LBGSD.nbytes, self.place)

    def close(self) -> None:
        """Free both tensors."""
        empty = torch.empty(0)
        self.k_LBGSD, self.v_LBGSD = empty, empty


def head_index(token_BGR: Tensor, groups: int) -> tuple[Tensor, Tensor, Tensor]:
    """Index of (row, KV head, token) for ``token_BGR`` of KV heads or query heads."""
    batch, heads, _ = token_BGR.shape
    row = torch.arange(batch, device=token_BGR.device)[:, None, None]
    head = torch.arange(heads, device=token_BGR.device)[None, :, None] // (heads // groups)
    return row, head, token_BGR.clamp_min(0)


def make_store(config: Any, shape: KVShape, page_tokens: int | None = None) -> Store:
    """The store that ``PlacementConfig`` options ask for (a method's own page size wins)."""
    from retrobench.memory.pool import OffloadStore

    tiers = Tiers.of(config, shape.device)
    if _one_tier(tiers, shape):
        return DeviceStore(shape, tiers.place)
    return OffloadStore(shape, tiers, page_tokens or tiers.page_tokens)


def plan_store(config: Any, shape: KVShape, page_tokens: int | None = None) -> Footprint:
    """Bytes of ``make_store`` before allocation."""
    from retrobench.memory.pool import OffloadStore

    tiers = Tiers.of(config, shape.device)
    if _one_tier(tiers, shape):
        return DeviceStore.plan(shape, tiers.place)
    return OffloadStore.plan(shape, tiers, page_tokens or tiers.page_tokens)


def _one_tier(tiers: Tiers, shape: KVShape) -> bool:
    on_host = torch.device(shape.device).type == "cpu"
    return not tiers.cached and (tiers.place == "gpu" or on_host)
