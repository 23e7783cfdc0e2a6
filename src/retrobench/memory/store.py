"""Stores: where the keys and values of the managed layers of one batch live.

A store knows tokens by position, never by importance. ``ResidentStore`` keeps them in one place;
``pool.PooledStore`` in a pool behind a block cache.
"""

import torch
from retrobench_kernels.wave_attention import Pool, Steady
from torch import Tensor

from retrobench.core.method import Probe, PromptLayer
from retrobench.core.shapes import Footprint, KVShape
from retrobench.memory.codec import Plain, make_codec
from retrobench.memory.placement import allocate, placed, vector_bytes
from retrobench.memory.selection import Spans, SpanView, Tokens
from retrobench.memory.slots import SlotMap
from retrobench.memory.transfer import Offload


class KVStore:
    """Keys and values of the managed layers of one batch. ``i`` is a layer's number in the shape.

    A kind of store gives what is not implemented here; the template asks for nothing else.
    """

    def __init__(self, shape: KVShape) -> None:
        self.shape = shape
        self.index = {layer: i for i, layer in enumerate(shape.layers)}
        self.lengths = [0] * len(shape.layers)  # tokens seen, left padding included
        self.map = SlotMap(shape)
        self.offload = Offload(shape.device)

    def load(self, layer: int, prompt: PromptLayer) -> None:
        """Take a layer of the prompt."""
        raise NotImplementedError

    def append(self, layer: int, k_BGTD: Tensor, v_BGTD: Tensor) -> None:
        """Add T tokens to a layer (behind a block cache: one)."""
        raise NotImplementedError

    def length(self, layer: int) -> int:
        """Tokens that a layer has seen, left padding included."""
        return self.lengths[self.index[layer]]

    def num_used(self, i: int) -> int:
        """Slots in use."""
        raise NotImplementedError

    def keys(self, layer: int) -> Tensor:
        """All stored keys of a layer in slot order, ``k_BGSD``, where they live."""
        raise NotImplementedError

    def values(self, layer: int) -> Tensor:
        """All stored values of a layer in slot order, ``v_BGSD``, where they live."""
        raise NotImplementedError

    def exists(self, layer: int) -> Tensor | None:
        """Which stored tokens are real, ``BGS``; None if all are but left padding."""
        return self.positions(layer) >= 0 if self.map.mapped(self.index[layer]) else None

    def positions(self, layer: int) -> Tensor:
        """Position of every stored token, ``BGS``, -1 where there is none."""
        i = self.index[layer]
        return self.map.positions(i, self.num_used(i))

    def gather(self, layer: int, token_BGR: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values of chosen positions, on the model's device.

        -1 marks padding (any row may come back). The second axis is KV heads or query heads.
        """
        raise NotImplementedError

    def spans(self, layer: int, spans: Spans) -> SpanView | None:
        """Where attention reads spans in place; None if they must be gathered."""
        return None

    def runs(self, layer: int, tokens: Tokens) -> Spans | None:
        """Chosen tokens as spans of one token each, where reading them in place saves a copy."""
        return None

    def packed(self, layer: int) -> tuple[Spans, SpanView] | None:
        """Everything as spans to be read in place, where heads hold different numbers of tokens."""
        return None

    def slot_positions(self, layer: int, slot_BGR: Tensor) -> Tensor:
        """Positions of the tokens in slots that spans name; here they are the same."""
        return slot_BGR

    def evict(self, layer: int, keep_BGR: Tensor) -> None:
        """Keep only these positions (-1 padded: heads may keep different numbers), free the rest.

        They are stored in this order; tokens appended later are kept.
        """
        raise NotImplementedError

    def reorder(self, layer: int, position_BGS: Tensor) -> None:
        """Store the prompt in this order: slot s takes position ``position_BGS[..., s]``."""
        self.evict(layer, position_BGS)

    def report_counts(self, probe: Probe) -> None:
        """Tell the probe what moved between tiers since the last call; here nothing."""

    def bytes_per_token(self) -> int:
        """K and V bytes of one token in one KV head, as stored."""
        return vector_bytes(self.shape)

    def footprint(self) -> Footprint:
        """Bytes held, by place; here the maps of slots to positions."""
        return Footprint(device=self.map.num_bytes())

    def close(self) -> None:
        """Free the memory."""
        self.offload.finish()
        self.map.close()


class ResidentStore(KVStore):
    """Keys and values in one place, one tensor per kind and layer.

    Slots are positions until ``evict`` or ``reorder``. On a CPU-only machine ``place`` may be host
    memory, which is the same memory.
    """

    def __init__(self, shape: KVShape, place: str = "gpu", codec: str = "none") -> None:
        super().__init__(shape)
        self.place, self.slots = place, shape.max_tokens
        self.codec = make_codec(codec, shape.head_dim, shape.dtype)
        count = len(shape.layers)
        self.k: list[tuple[Tensor, ...]] = [()] * count
        self.v: list[tuple[Tensor, ...]] = [()] * count
        self.used = [0] * count  # slots in use

    @staticmethod
    def plan(shape: KVShape, place: str = "gpu", codec: str = "none") -> Footprint:
        """Bytes before allocation."""
        vector = make_codec(codec, shape.head_dim, shape.dtype).bytes_per_vector()
        rows = len(shape.layers) * shape.batch * shape.num_kv_heads * shape.max_tokens
        return placed(2 * rows * vector, place)

    @staticmethod
    def plan_evicted(shape: KVShape, kept: int) -> Footprint:
        """Bytes after ``evict`` has kept ``kept`` tokens of each head's prompt (positions too)."""
        slots = kept + shape.decoded_tokens
        heads = len(shape.layers) * shape.batch * shape.num_kv_heads
        return Footprint(device=heads * slots * (vector_bytes(shape) + 4))

    def load(self, layer: int, prompt: PromptLayer) -> None:
        """Take a layer: its own memory if the prompt gives that away, else a copy."""
        i, tokens = self.index[layer], prompt.k_BGSD.shape[2]
        given = prompt.memory
        self.lengths[i] = self.used[i] = tokens
        if given is not None and self._fits(given[0]):
            self.k[i], self.v[i] = (given[0],), (given[1],)
            return
        for held, part in ((self.k, prompt.k_BGSD), (self.v, prompt.v_BGSD)):
            held[i] = self._allocate(self.codec.encode(part), self.slots)
            self._write(held[i], slice(0, tokens), part, aside=True)

    def _fits(self, memory: Tensor) -> bool:
        shape = self.shape
        size = (shape.batch, shape.num_kv_heads, self.slots, shape.head_dim)
        plain = self.place == "gpu" and isinstance(self.codec, Plain)
        return plain and memory.shape == size and memory.dtype == getattr(torch, shape.dtype)

    def _allocate(self, like: tuple[Tensor, ...], slots: int) -> tuple[Tensor, ...]:
        """Memory for ``slots`` tokens of one kind and layer."""
        sizes = [(*part.shape[:2], slots, *part.shape[3:]) for part in like]
        return tuple(
            allocate(size, self.shape, self.place, part.dtype)
            for size, part in zip(sizes, like, strict=True)
        )

    def _write(
        self, held: tuple[Tensor, ...], slots: slice, vectors: Tensor, *, aside: bool = False
    ) -> None:
        for memory, part in zip(held, self.codec.encode(vectors), strict=True):
            self.offload.copy(memory[:, :, slots], part, aside=aside)

    def append(self, layer: int, k_BGTD: Tensor, v_BGTD: Tensor) -> None:
        """Add T tokens to a layer, in place."""
        i, tokens = self.index[layer], k_BGTD.shape[2]
        start, end = self.used[i], self.used[i] + tokens
        assert end <= self.k[i][0].shape[2], "session longer than planned"
        self._write(self.k[i], slice(start, end), k_BGTD)
        self._write(self.v[i], slice(start, end), v_BGTD)
        self.map.append(i, start, self.lengths[i], tokens)
        self.used[i], self.lengths[i] = end, self.lengths[i] + tokens

    def num_used(self, i: int) -> int:
        return self.used[i]

    def keys(self, layer: int) -> Tensor:
        """All keys of a layer, ``k_BGSD``; a view where nothing is quantised."""
        return self._read(self.k, layer)

    def values(self, layer: int) -> Tensor:
        """All values of a layer, ``v_BGSD``; a view where nothing is quantised."""
        return self._read(self.v, layer)

    def _read(self, held: list[tuple[Tensor, ...]], layer: int) -> Tensor:
        i = self.index[layer]
        self.offload.finish()
        return self.codec.decode(tuple(part[:, :, : self.used[i]] for part in held[i]))

    def gather(self, layer: int, token_BGR: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values at positions (second axis: KV heads, or query heads)."""
        i = self.index[layer]
        self.offload.finish()
        slot_BGR = self.map.slots(i, self.used[i], token_BGR)
        found = []
        for held in (self.k[i], self.v[i]):
            part = self.codec.decode(tuple(take(memory, slot_BGR) for memory in held))
            found.append(part.to(token_BGR.device, non_blocking=True))
        return found[0], found[1]

    def spans(self, layer: int, spans: Spans) -> SpanView | None:
        """In place, where slots are in the model's memory and as they came."""
        i = self.index[layer]
        if len(self.k[i]) > 1 or self.k[i][0].device != spans.chosen_BGN.device:
            return None
        keys, values = self.keys(layer), self.values(layer)
        none = torch.zeros(self.shape.batch, dtype=torch.int32, device=keys.device)
        steady = Steady(keys[:, :, :0], values[:, :, :0], none)
        return SpanView(Pool(keys, values, spans.first_BGC, spans.size_BGC), steady)

    def runs(self, layer: int, tokens: Tokens) -> Spans | None:
        """On a CPU, as long as slots are positions and heads of a group choose together."""
        i = self.index[layer]
        plain = tokens.estimate is None and tokens.log_weight_BGR is None
        grouped = tokens.token_BGR.shape[1] == self.shape.num_kv_heads
        widths = {part.shape[-1] for part in (self.k[i][0], self.v[i][0])}
        on_cpu = torch.device(self.shape.device).type == "cpu"
        if not (plain and grouped and on_cpu) or self.map.mapped(i) or len(widths) > 1:
            return None
        return tokens.spans()

    def evict(self, layer: int, keep_BGR: Tensor) -> None:
        """Keep these positions; the memory shrinks to them and what is still to come."""
        i, kept = self.index[layer], keep_BGR.shape[-1]
        room = self.shape.max_tokens - self.lengths[i]
        keys, values = self.gather(layer, keep_BGR)
        for held, part in ((self.k, keys), (self.v, values)):
            held[i] = self._allocate(held[i], kept + room)
            self._write(held[i], slice(0, kept), part)
        self.map.place(i, keep_BGR, room)
        self.used[i] = kept

    def bytes_per_token(self) -> int:
        """K and V of one token in one KV head."""
        return 2 * self.codec.bytes_per_vector()

    def footprint(self) -> Footprint:
        held = [memory for layer in (*self.k, *self.v) for memory in layer]
        return super().footprint() + placed(sum(memory.nbytes for memory in held), self.place)

    def close(self) -> None:
        super().close()
        count = len(self.shape.layers)
        self.k, self.v = [()] * count, [()] * count


def take(memory_BGSD: Tensor, slot_BGR: Tensor) -> Tensor:
    """Rows at slots, ``BGRD``, where the memory is; -1 gives any row.

    The second axis of the slots is KV heads or query heads. Whole rows are copied: on a CPU that is
    several times faster than an index per axis.
    """
    slot = slot_BGR.to(memory_BGSD.device).clamp_min(0)
    rows = row_numbers(memory_BGSD, slot)
    return memory_BGSD.flatten(0, 2).index_select(0, rows).unflatten(0, slot.shape)


def row_numbers(memory_BGSD: Tensor, slot_BGR: Tensor) -> Tensor:
    """Numbers of slots among all rows of the memory, flat."""
    batch, groups, tokens = memory_BGSD.shape[:3]
    first = torch.arange(batch * groups, device=slot_BGR.device).mul_(tokens)
    first = first.view(batch, groups, 1).repeat_interleave(slot_BGR.shape[1] // groups, 1)
    return (first + slot_BGR).flatten()


def head_index(token_BGR: Tensor, groups: int) -> tuple[Tensor, Tensor, Tensor]:
    """Index of (row, KV head, token) for ``token_BGR`` of KV heads or query heads."""
    batch, heads, _ = token_BGR.shape
    row = torch.arange(batch, device=token_BGR.device)[:, None, None]
    head = torch.arange(heads, device=token_BGR.device)[None, :, None] // (heads // groups)
    return row, head, token_BGR.clamp_min(0)
