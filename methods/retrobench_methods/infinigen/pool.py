"""The KV pool (paper 4.4): keys and values in host memory, a capacity and an eviction policy."""

from typing import cast

import torch
from torch import Tensor

from retrobench.core.method import PromptLayer
from retrobench.core.shapes import Footprint, KVShape
from retrobench.memory.placement import host_place, placed
from retrobench.memory.selection import listed
from retrobench.memory.store import ResidentStore, take
from retrobench_methods.infinigen.config import InfiniGenConfig, pool_tokens

SATURATED = 255  # a counter that reaches it halves all counters of its head


class KVPool(ResidentStore):
    """A store of limited capacity: a new token takes the slot of a victim of its head.

    ``use_BGP`` holds what the policy compares (fetches, last fetch, or nothing for fifo). The
    newest tokens, half the capacity, are never victims (the released accuracy code spares the
    newest half of the context, which a small pool cannot hold).
    """

    def __init__(self, config: InfiniGenConfig, shape: KVShape) -> None:
        super().__init__(shape, place(config, shape))
        self.config, self.capacity = config, pool_tokens(config, shape)
        self.evicts = self.capacity < shape.max_tokens
        self.slots = self.capacity
        self.use: list[Tensor] = [torch.empty(0)] * len(shape.layers)  # BGP

    @staticmethod
    def plan(config: InfiniGenConfig, shape: KVShape) -> Footprint:
        """Bytes once the prompt is in the pool."""
        tokens = pool_tokens(config, shape)
        held = placed(shape.kv_bytes_per_token * shape.batch * tokens, place(config, shape))
        if tokens < shape.max_tokens:  # positions and uses
            heads = len(shape.layers) * shape.batch * shape.num_kv_heads
            held += Footprint(device=heads * tokens * 2 * 4)
        return held

    def footprint(self) -> Footprint:
        return super().footprint() + Footprint(device=sum(use.nbytes for use in self.use))

    def load_used(self, layer: int, prompt: PromptLayer, use_BGS: Tensor) -> None:
        """Take what the capacity allows of a layer; positions and uses are kept from now on.

        ``use_BGS`` is each prompt token's use.
        """
        i, tokens = self.index[layer], prompt.k_BGSD.shape[2]
        keep = min(tokens, self.capacity)
        position = torch.arange(tokens, device=use_BGS.device)
        rank = position.expand(use_BGS.shape).double()
        if self.config.pool_policy != "fifo":
            rank = rank + use_BGS.double() * tokens
        padding = torch.tensor(self.shape.pad_tokens, device=use_BGS.device)[:, None, None]
        rank = rank.masked_fill(position < padding, -1)
        rank = rank.masked_fill(position >= tokens - keep // 2, torch.inf)
        kept_BGP = rank.topk(keep, -1).indices.sort(-1).values
        for held, part in ((self.k, prompt.k_BGSD), (self.v, prompt.v_BGSD)):
            index = kept_BGP[..., None].expand(-1, -1, -1, self.shape.head_dim)
            held[i] = self._allocate((part,), self.capacity)
            self._write(held[i], slice(0, keep), part.gather(2, index), aside=True)
        self.map.place(i, kept_BGP.int(), self.capacity - keep)
        use = use_BGS.gather(-1, kept_BGP).int()
        self.use[i] = torch.nn.functional.pad(use, (0, self.capacity - keep))
        self.used[i], self.lengths[i] = keep, tokens

    def add(self, layer: int, k_BGTD: Tensor, v_BGTD: Tensor) -> slice | Tensor:
        """Add one token; its slot (a slice, same for all heads), or victims' slots ``slot_BG``."""
        i = self.index[layer]
        length, used = self.lengths[i], self.used[i]
        if used < self.capacity:
            self.append(layer, k_BGTD, v_BGTD)
            slot: slice | Tensor = slice(used, used + 1)
        else:
            slot = self._victim(i, length)
            put(self.k[i][0], slot, k_BGTD.to(self.k[i][0].device))
            put(self.v[i][0], slot, v_BGTD.to(self.v[i][0].device))
            position = self.map.position_BGS[i]
            assert position is not None
            put(position, slot, length)
            self.lengths[i] = length + 1
        if self.evicts:
            put(self.use[i], slot, length if self.config.pool_policy == "lru" else 0)
        return slot

    def _victim(self, i: int, length: int) -> Tensor:
        position = self.map.positions(i, self.capacity).double()
        rank = position
        if self.config.pool_policy != "fifo":
            rank = rank + self.use[i].double() * (length + 1)
        return rank.masked_fill(position >= length - self.capacity // 2, torch.inf).argmin(-1)

    def touch(self, layer: int, slot_BGR: Tensor) -> None:
        """Note which slots a step fetched (KV heads, or query heads of their groups)."""
        if not self.evicts or self.config.pool_policy == "fifo":
            return
        i = self.index[layer]
        slot = slot_BGR.unflatten(1, (self.shape.num_kv_heads, -1)).flatten(2)
        hit, use = listed(slot, self.capacity), self.use[i]
        if self.config.pool_policy == "lru":
            use.copy_(torch.where(hit, self.lengths[i], use))
            return
        use += hit
        full = use.amax(-1, keepdim=True) >= SATURATED
        use.copy_(torch.where(full, use // 2, use))

    def fetch(self, layer: int, slot_BGR: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values of slots, on the compute device; -1 gives any row."""
        i = self.index[layer]
        self.offload.finish()
        keys, values = take(self.k[i][0], slot_BGR), take(self.v[i][0], slot_BGR)
        if self.place != "pinned":
            return keys, values
        keys, values = (
            part.pin_memory().to(self.shape.device, non_blocking=True) for part in (keys, values)
        )
        return keys, values

    def real_slots(self, layer: int) -> Tensor:
        """Which slots in use hold real tokens, ``BGS``."""
        return self.positions(layer) >= 0

    def positions_of(self, layer: int, slot_BGR: Tensor) -> Tensor:
        """Positions of slots; -1 stays -1."""
        if not self.evicts:
            return slot_BGR
        position = self.positions(layer)
        position = position.repeat_interleave(slot_BGR.shape[1] // position.shape[1], 1).long()
        found = position.gather(-1, slot_BGR.clamp_min(0))
        return found.masked_fill(slot_BGR < 0, -1)

    def close(self) -> None:
        super().close()
        self.use = [torch.empty(0)] * len(self.shape.layers)


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


def place(config: InfiniGenConfig, shape: KVShape) -> str:
    """Where the pool is."""
    return "gpu" if config.placement == "gpu" else host_place(shape.device)
