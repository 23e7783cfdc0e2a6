"""The KV pool (paper 4.4): keys and values in host memory, a capacity and an eviction policy."""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor

from retrobench.core.shapes import Footprint, KVShape
from retrobench_methods.infinigen.config import InfiniGenConfig, pool_tokens

SATURATED = 255  # a counter that reaches it halves all counters of its head


class KVPool:
    """Slots of keys and values per layer and KV head.

    While the prompt comes in, slot = position. A pool smaller than prompt and answer then drops
    tokens: ``use`` holds what its policy compares (fetches, last fetch, or nothing for fifo). The
    newest tokens, half the capacity, are never victims (the released accuracy code spares the
    newest half of the context, which a small pool cannot hold).
    """

    def __init__(self, config: InfiniGenConfig, shape: KVShape) -> None:
        self.config, self.shape = config, shape
        self.capacity = pool_tokens(config, shape)
        self.evicts, self.sealed = self.capacity < shape.max_tokens, False
        self.slot = {layer: i for i, layer in enumerate(shape.layers)}
        self.on_host = config.placement == "cpu" and shape.device != "cpu"
        self.place = "cpu" if config.placement == "cpu" else shape.device
        tokens = max(self.capacity, shape.prompt_tokens)
        self.k_LBGPD, self.v_LBGPD = self._empty(tokens), self._empty(tokens)
        self.lengths = [0] * len(shape.layers)  # tokens seen
        self.used = [0] * len(shape.layers)  # slots in use
        head = (len(shape.layers), shape.batch, shape.num_kv_heads)
        size = self.capacity if self.evicts else 0
        self.position_LBGP = torch.zeros(*head, size, dtype=torch.int32, device=self.place)
        self.use_LBGP = torch.zeros_like(self.position_LBGP)

    def _empty(self, tokens: int) -> Tensor:
        shape = self.shape
        size = (len(shape.layers), shape.batch, shape.num_kv_heads, tokens, shape.head_dim)
        dtype = getattr(torch, shape.dtype)
        return torch.empty(size, dtype=dtype, device=self.place, pin_memory=self.on_host)

    @staticmethod
    def plan(config: InfiniGenConfig, shape: KVShape) -> Footprint:
        """Bytes once the prompt is sealed."""
        tokens = pool_tokens(config, shape)
        num_bytes = shape.kv_bytes_per_token * shape.batch * tokens
        if tokens < shape.max_tokens:
            num_bytes += len(shape.layers) * shape.batch * shape.num_kv_heads * tokens * 2 * 4
        return place(config, shape, num_bytes)

    def footprint(self) -> Footprint:
        """Bytes held."""
        held = (self.k_LBGPD, self.v_LBGPD, self.position_LBGP, self.use_LBGP)
        return place(self.config, self.shape, sum(tensor.nbytes for tensor in held))

    def extend(self, layer: int, k_BGTD: Tensor, v_BGTD: Tensor) -> None:
        """Add a chunk of the prompt."""
        i = self.slot[layer]
        end = self.lengths[i] + k_BGTD.shape[2]
        self.k_LBGPD[i, :, :, self.lengths[i] : end] = k_BGTD
        self.v_LBGPD[i, :, :, self.lengths[i] : end] = v_BGTD
        self.lengths[i] = self.used[i] = end

    def whole(self, layer: int) -> tuple[Tensor, Tensor]:
        """All slots of a layer on the compute device."""
        i = self.slot[layer]
        used, device = self.used[i], self.shape.device
        k, v = self.k_LBGPD[i, :, :, :used], self.v_LBGPD[i, :, :, :used]
        return k.to(device, non_blocking=True), v.to(device, non_blocking=True)

    def seal(self, use_LBGS: Tensor | None) -> None:
        """Shrink to the capacity. ``use_LBGS``: each prompt token's use, if tokens must go."""
        self.sealed = True
        if not self.evicts:
            return
        tokens = self.lengths[0]
        keep = min(tokens, self.capacity)
        position = torch.arange(tokens, device=self.place)
        rank = position.expand(*self.position_LBGP.shape[:3], -1).double()
        if use_LBGS is not None and self.config.pool_policy != "fifo":
            rank = rank + use_LBGS.double() * tokens
        padding = torch.tensor(self.shape.pad_tokens, device=self.place)[:, None, None]
        rank = rank.masked_fill(position < padding, -1)
        rank = rank.masked_fill(position >= tokens - keep // 2, torch.inf)
        kept_LBGP = rank.topk(keep, -1).indices.sort(-1).values
        self.position_LBGP[..., :keep] = kept_LBGP.int()
        if use_LBGS is not None:
            self.use_LBGP[..., :keep] = use_LBGS.gather(-1, kept_LBGP).int()
        index = kept_LBGP[..., None].expand(-1, -1, -1, -1, self.shape.head_dim)
        for name in ("k_LBGPD", "v_LBGPD"):
            smaller = self._empty(self.capacity)
            smaller[:, :, :, :keep] = getattr(self, name).gather(3, index)
            setattr(self, name, smaller)
        self.used = [keep] * len(self.used)

    def add(self, layer: int, k_BGTD: Tensor, v_BGTD: Tensor) -> slice | Tensor:
        """Add one token; its slot (a slice, same for all heads), or victims' slots ``slot_BG``."""
        i = self.slot[layer]
        length, used = self.lengths[i], self.used[i]
        if used < self.k_LBGPD.shape[3]:
            slot = slice(used, used + 1)
            self.used[i] += 1
        else:
            slot = self._victim(i, length)
        put(self.k_LBGPD[i], slot, k_BGTD.to(self.place))
        put(self.v_LBGPD[i], slot, v_BGTD.to(self.place))
        if self.evicts:
            put(self.position_LBGP[i], slot, length)
            put(self.use_LBGP[i], slot, self._fresh(length))
        self.lengths[i] = length + 1
        return slot

    def _fresh(self, step: int) -> int:
        return step if self.config.pool_policy == "lru" else 0

    def _victim(self, i: int, length: int) -> Tensor:
        position = self.position_LBGP[i].double()
        rank = position
        if self.config.pool_policy != "fifo":
            rank = rank + self.use_LBGP[i].double() * (length + 1)
        return rank.masked_fill(position >= length - self.capacity // 2, torch.inf).argmin(-1)

    def touch(self, layer: int, slot_BGR: Tensor) -> None:
        """Note which slots a step fetched (KV heads, or query heads of their groups)."""
        if not self.evicts or self.config.pool_policy == "fifo":
            return
        i, groups = self.slot[layer], self.shape.num_kv_heads
        slot = slot_BGR.unflatten(1, (groups, -1)).flatten(2).to(self.place)
        hit = torch.zeros(*slot.shape[:2], self.capacity + 1, dtype=torch.int32, device=self.place)
        hit.scatter_(2, slot.masked_fill(slot < 0, self.capacity), 1)
        hit = hit[..., :-1]
        use = self.use_LBGP[i]
        if self.config.pool_policy == "lru":
            use.copy_(torch.where(hit > 0, self.lengths[i], use))
            return
        use += hit
        full = use.amax(-1, keepdim=True) >= SATURATED
        use.copy_(torch.where(full, use // 2, use))

    def fetch(self, layer: int, slot_BGR: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values of slots, on the compute device; -1 gives any row."""
        i, device = self.slot[layer], self.shape.device
        slot = slot_BGR.to(self.place).clamp_min(0)
        groups, tokens = self.shape.num_kv_heads, self.k_LBGPD.shape[3]
        first = torch.arange(slot.shape[0] * groups, device=self.place).mul_(tokens)
        first = first.view(-1, groups, 1).repeat_interleave(slot.shape[1] // groups, 1)
        rows = (first + slot).flatten()
        parts = []
        for pool in (self.k_LBGPD[i], self.v_LBGPD[i]):  # whole rows: several times faster so
            part = pool.flatten(0, 2).index_select(0, rows).unflatten(0, slot.shape)
            if self.on_host:
                part = part.pin_memory().to(device, non_blocking=True)
            parts.append(part)
        return parts[0], parts[1]

    def positions(self, layer: int, slot_BGR: Tensor) -> Tensor:
        """Positions of slots; -1 stays -1."""
        if not self.evicts:
            return slot_BGR
        i = self.slot[layer]
        repeat = slot_BGR.shape[1] // self.shape.num_kv_heads
        position = self.position_LBGP[i].repeat_interleave(repeat, 1).long()
        found = position.gather(-1, slot_BGR.to(self.place).clamp_min(0)).to(slot_BGR.device)
        return found.masked_fill(slot_BGR < 0, -1)

    def exists(self, layer: int) -> Tensor:
        """Which slots in use hold real tokens, ``BGS``, on the compute device."""
        i = self.slot[layer]
        used, device = self.used[i], self.shape.device
        padding = torch.tensor(self.shape.pad_tokens, device=device)[:, None, None]
        if self.evicts and self.sealed:
            return self.position_LBGP[i, :, :, :used].to(device) >= padding
        position = torch.arange(used, device=device)
        return (position >= padding).expand(-1, self.shape.num_kv_heads, -1)

    def close(self) -> None:
        """Free everything."""
        self.k_LBGPD = self.v_LBGPD = torch.empty(0)
        self.position_LBGP = self.use_LBGP = torch.empty(0, dtype=torch.int32)


def put(pool_BGP: Tensor, slot: slice | Tensor, value_BGT: Tensor | int) -> None:
    """Write tokens into a slice of slots, or one token per head into ``slot_BG``, in place.

    Rows are indexed, never ``scatter_``: on a CPU that costs time in the size of the pool.
    """
    if isinstance(slot, slice):
        pool_BGP[:, :, slot] = value_BGT
        return
    slot_BG = cast(Tensor, slot).to(pool_BGP.device)
    row_B1 = torch.arange(slot_BG.shape[0], device=slot_BG.device)[:, None]
    head_G = torch.arange(slot_BG.shape[1], device=slot_BG.device)
    value = value_BGT if isinstance(value_BGT, int) else value_BGT[:, :, 0]
    pool_BGP[row_B1, head_G, slot_BG] = value


def place(config: InfiniGenConfig, shape: KVShape, num_bytes: int) -> Footprint:
    """Pool bytes by place: pinned host memory beside a GPU, plain host memory on a CPU."""
    if config.placement == "gpu":
        return Footprint(device=num_bytes)
    return Footprint(host=num_bytes) if shape.device == "cpu" else Footprint(pinned=num_bytes)
