"""Places for keys and values: the options, what they mean on a device, and memory there."""

import math
import mmap
import weakref
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor

from retrobench.core.shapes import Footprint, KVShape
from retrobench.core.spec import option, share
from retrobench.memory.page_table import POLICIES


def page_locked(num_bytes: int) -> Tensor:
    """Bytes that a GPU reads and writes by itself; RuntimeError if the driver refuses.

    torch's pinned allocator rounds up to powers of two, which at this scale is tens of gigabytes.
    The memory is mapped by itself, so that no two registrations share a page, and in huge pages
    where the system has them: the GPU translates host addresses, too. The registration ends with
    the memory's last user, before the pages are given back.
    """
    pages = mmap.mmap(-1, num_bytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    if hasattr(mmap, "MADV_HUGEPAGE"):
        pages.madvise(mmap.MADV_HUGEPAGE)
    array = np.frombuffer(pages, np.uint8)
    address = array.ctypes.data
    code = int(cuda_runtime().cudaHostRegister(address, num_bytes, 0))
    if code:
        raise RuntimeError(
            f"cudaHostRegister refused {num_bytes / 2**30:.2f} GiB (error {code}): raise the "
            "locked-memory limit (ulimit -l) or use method.placement=cpu"
        )
    # an array forgets its weak references first and its buffer, the mapping, afterwards
    weakref.finalize(array, cuda_runtime().cudaHostUnregister, address)
    return torch.from_numpy(array)


def cuda_runtime() -> Any:
    """The CUDA runtime that torch has loaded."""
    return torch.cuda.cudart()


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
        "GPU block cache of recently used pages: none, managed by the host or by the device; "
        "auto: device where the model is on a GPU and its KV is not, else none",
        choices=MANAGERS,
    )
    cache_frac: float = share(0.05, "share of the KV cache that the block cache holds")
    page_tokens: int = option(8, "tokens per page, the unit of the block cache", low=1, high=256)
    eviction: str = option(
        "lru", "which page leaves the block cache (fifo and lfu: cache=host only)", choices=POLICIES
    )
    cache_bound: bool = option(
        False, "also record the accesses and report the hit ratio of the best policy (Belady)"
    )

    @property
    def pool_page_tokens(self) -> int:
        """Tokens per page of the pool, unless a method has pages of its own."""
        return self.page_tokens


@dataclass(frozen=True, slots=True, kw_only=True)
class ResolvedPlacement:
    """Placement options, decided for one device: ``place`` and ``manager`` are never auto."""

    place: str
    manager: str
    page_tokens: int
    cache_frac: float
    eviction: str
    record: bool

    @classmethod
    def of(cls, config: PlacementConfig, device: str) -> Self:
        """ValueError for combinations that do not exist."""
        on_gpu = torch.device(device).type == "cuda"
        place = resolve_place(config.placement, device)
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
        if config.cache_bound and manager == "none":
            raise ValueError(
                "method.cache_bound=true records the accesses of a block cache, and there is none: "
                "leave it out, or use method.cache=host or device"
            )
        return cls(
            place=place,
            manager=manager,
            page_tokens=config.pool_page_tokens,
            cache_frac=config.cache_frac,
            eviction=config.eviction,
            record=config.cache_bound,
        )

    @property
    def cached(self) -> bool:
        """Whether there is a block cache."""
        return self.manager != "none"


def allocate(
    size: Sequence[int], shape: KVShape, place: str, dtype: torch.dtype | None = None
) -> Tensor:
    """Uninitialised memory of the shape's dtype (or another one) at a place.

    Pinned memory is that of ``page_locked``. RuntimeError if the driver refuses.
    """
    if dtype is None:
        dtype = getattr(torch, shape.dtype)
    if place == "gpu":
        return torch.empty(*size, dtype=dtype, device=shape.device)
    on_gpu = torch.device(shape.device).type == "cuda"
    if place != "pinned" or not on_gpu or 0 in size:
        return torch.empty(*size, dtype=dtype)
    num_bytes = math.prod(size) * torch.empty(0, dtype=dtype).element_size()
    return page_locked(num_bytes).view(dtype).view(*size)


class Holder:
    """Base of what holds tensors on the model's device: all that its attributes are."""

    def tensors(self) -> Iterator[Tensor]:
        """Everything held, that of parts which are holders themselves included."""
        for value in vars(self).values():
            if isinstance(value, Tensor):
                yield value
            elif isinstance(value, Holder):
                yield from value.tensors()

    def footprint(self) -> Footprint:
        """Bytes held."""
        return Footprint(device=sum(tensor.nbytes for tensor in self.tensors()))

    def close(self) -> None:
        """Free everything."""
        for name, value in vars(self).items():
            if isinstance(value, Holder):
                value.close()
            elif isinstance(value, Tensor):
                setattr(self, name, torch.empty(0))


def host_place(device: str) -> str:
    """The place in host memory that suits a model on ``device``: page-locked beside a GPU."""
    return "pinned" if torch.device(device).type == "cuda" else "cpu"


def resolve_place(placement: str, device: str) -> str:
    """The place of the option ``placement``, in which auto is host memory."""
    return host_place(device) if placement == "auto" else placement


def placed(num_bytes: int, place: str) -> Footprint:
    """``num_bytes`` at a place, as a footprint."""
    kind = {"gpu": "device", "pinned": "pinned", "cpu": "host"}[place]
    return Footprint(**{kind: num_bytes})


def kv_bytes(shape: KVShape, tokens: int) -> int:
    """K and V bytes of ``tokens`` tokens in every row, KV head and layer."""
    return shape.kv_bytes_per_token * shape.batch * tokens


def vector_bytes(shape: KVShape) -> int:
    """K and V bytes of one token in one KV head."""
    return 2 * shape.head_dim * shape.value_bytes
