"""The block cache that the options ask for."""

from __future__ import annotations

from retrobench.core.shapes import Footprint, KVShape
from retrobench.memory.device_cache import DeviceCache
from retrobench.memory.host_cache import HostCache
from retrobench.memory.page_cache import CacheSize, PageCache
from retrobench.memory.placement import ResolvedPlacement, kv_bytes


def make_cache(placement: ResolvedPlacement, shape: KVShape, size: CacheSize) -> PageCache:
    """The manager that the options ask for (``placement.cached`` only)."""
    if placement.manager == "device":
        return DeviceCache(shape, size, placement.record)
    return HostCache(shape, size, placement.eviction, placement.record)


def plan_cache(placement: ResolvedPlacement, shape: KVShape, size: CacheSize) -> Footprint:
    """Bytes of ``make_cache`` before allocation."""
    kind = DeviceCache if placement.manager == "device" else HostCache
    slots = Footprint(device=kv_bytes(shape, size.slots * size.page_tokens))
    return slots + kind.plan_table(shape, size)
