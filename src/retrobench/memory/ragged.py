"""RaggedStore: what eviction leaves, packed head after head, so that no head pays for another."""

from collections.abc import Sequence

import torch
from retrobench_kernels.wave_attention import Pool, Steady
from torch import Tensor

from retrobench.core.method import PromptLayer
from retrobench.core.shapes import Footprint, KVShape
from retrobench.memory.placement import allocate, vector_bytes
from retrobench.memory.selection import Spans, SpanView
from retrobench.memory.slots import find
from retrobench.memory.store import KVStore

RUN_TOKENS = 64  # attention takes a head in runs of so many tokens, which threads can share


class RaggedStore(KVStore):
    """Keys and values of a layer in one block of memory, on the model's device.

    Every row and KV head has its tokens in a run of slots of its own, with room behind them for
    what the session still adds. So the memory is the sum of what the heads keep. Until ``evict``
    they keep everything, left padding included, as in the other stores.
    """

    def __init__(self, shape: KVShape) -> None:
        super().__init__(shape)
        self._forget()

    def _forget(self) -> None:
        count, none = len(self.shape.layers), torch.empty(0)
        self.k, self.v = [none] * count, [none] * count  # BGSD of one row and head: all slots
        self.position_S = [none] * count  # int32, -1 where a slot is free
        self.first_BG, self.kept_BG = [none] * count, [none] * count  # int32
        self.starts: list[list[list[int]]] = [[]] * count  # ``first_BG`` on the host, and
        self.counts: list[list[list[int]]] = [[]] * count  # ``kept_BG``
        self.most = [0] * count  # tokens that the fullest head has kept
        self.added = [0] * count  # tokens since then, the same for every head
        self.padded = [False] * count  # left padding is among them

    @staticmethod
    def plan(shape: KVShape, kept: Sequence[int]) -> Footprint:
        """Bytes after ``evict`` has kept so many tokens in all rows and heads of each layer."""
        heads = len(kept) * shape.batch * shape.num_kv_heads
        slots = sum(kept) + heads * shape.decoded_tokens
        return Footprint(device=slots * (vector_bytes(shape) + 4) + heads * 8)

    def load(self, layer: int, prompt: PromptLayer) -> None:
        """Take a layer: a copy."""
        i, tokens = self.index[layer], prompt.k_BGSD.shape[2]
        self.lengths[i], self.padded[i] = tokens, any(self.shape.pad_tokens)
        position = torch.arange(tokens, device=prompt.k_BGSD.device)
        self._pack(i, position.expand(prompt.k_BGSD.shape[:3]), prompt.k_BGSD, prompt.v_BGSD)

    def evict(self, layer: int, keep_BGR: Tensor) -> None:
        """Keep these positions; the memory shrinks to them and what is still to come."""
        pad_B11 = torch.tensor(self.shape.pad_tokens, device=keep_BGR.device)[:, None, None]
        keep_BGR = keep_BGR.masked_fill(keep_BGR < pad_B11, -1)
        self._pack(self.index[layer], keep_BGR, *self.gather(layer, keep_BGR))
        self.padded[self.index[layer]] = False

    def _pack(self, i: int, token_BGR: Tensor, k_BGRD: Tensor, v_BGRD: Tensor) -> None:
        """Head after head into fresh memory."""
        shape, room = self.shape, self.shape.max_tokens - self.lengths[i]
        valid = token_BGR >= 0
        kept_BG = valid.sum(-1)
        last_BG = (kept_BG + room).flatten().cumsum(0).view_as(kept_BG)
        first_BG = last_BG - kept_BG - room
        slot_R = (first_BG[..., None] + valid.cumsum(-1) - 1)[valid]
        slots = int(last_BG[-1, -1])
        for held, part in ((self.k, k_BGRD), (self.v, v_BGRD)):
            held[i] = allocate((1, 1, slots, shape.head_dim), shape, "gpu").zero_()
            held[i][0, 0, slot_R] = part[valid]
        self.position_S[i] = torch.full_like(slot_R[:1], -1, dtype=torch.int32).repeat(slots)
        self.position_S[i][slot_R] = token_BGR[valid].int()
        self.first_BG[i], self.kept_BG[i] = first_BG.int(), kept_BG.int()
        self.starts[i], self.counts[i] = first_BG.tolist(), kept_BG.tolist()
        self.most[i], self.added[i] = max(map(max, self.counts[i])), 0

    def append(self, layer: int, k_BGTD: Tensor, v_BGTD: Tensor) -> None:
        """Add T tokens behind those of every head."""
        i, tokens = self.index[layer], k_BGTD.shape[2]
        assert self.lengths[i] + tokens <= self.shape.max_tokens, "session longer than planned"
        new_T = torch.arange(tokens, device=k_BGTD.device)
        slot_BGT = (self.first_BG[i] + self.kept_BG[i] + self.added[i])[..., None] + new_T
        self.k[i][0, 0, slot_BGT] = k_BGTD
        self.v[i][0, 0, slot_BGT] = v_BGTD
        self.position_S[i][slot_BGT] = (new_T + self.lengths[i]).int()
        self.added[i], self.lengths[i] = self.added[i] + tokens, self.lengths[i] + tokens

    def kept_slots(self, layer: int, row: int, head: int) -> slice:
        """Slots of what a head has kept; tokens that were appended come behind them."""
        i = self.index[layer]
        start = self.starts[i][row][head]
        return slice(start, start + self.counts[i][row][head])

    def kept_keys(self, layer: int, row: int, head: int) -> Tensor:
        """Keys of what a head has kept, ``k_SD``, in place."""
        return self.k[self.index[layer]][0, 0, self.kept_slots(layer, row, head)]

    def overwrite(
        self, layer: int, slot_R: Tensor, token_R: Tensor, k_RD: Tensor, v_RD: Tensor
    ) -> None:
        """Other tokens in place of kept ones."""
        i = self.index[layer]
        self.position_S[i][slot_R] = token_R.int()
        self.k[i][0, 0, slot_R], self.v[i][0, 0, slot_R] = k_RD, v_RD

    def num_used(self, i: int) -> int:
        """Slots of the fullest head."""
        return self.most[i] + self.added[i]

    def _slots(self, i: int) -> tuple[Tensor, Tensor]:
        """Slots of every head, ``BGS``, and which of them are in use."""
        rank = torch.arange(self.num_used(i), device=self.first_BG[i].device)
        valid = rank < (self.kept_BG[i] + self.added[i])[..., None]
        return (self.first_BG[i][..., None] + rank).masked_fill(~valid, 0), valid

    def exists(self, layer: int) -> Tensor:
        """Which entries of the heads hold a real token, ``BGS``."""
        return self.positions(layer) >= 0

    def positions(self, layer: int) -> Tensor:
        """Positions of the heads' tokens, ``BGS``, -1 where there is none."""
        slot_BGS, valid = self._slots(self.index[layer])
        return self.slot_positions(layer, slot_BGS.masked_fill(~valid, -1))

    def slot_positions(self, layer: int, slot_BGR: Tensor) -> Tensor:
        """Positions that slots hold; -1 stays -1, and padding becomes it."""
        pad_B11 = torch.tensor(self.shape.pad_tokens, device=slot_BGR.device)[:, None, None]
        position = self.position_S[self.index[layer]][slot_BGR.clamp_min(0)]
        return position.masked_fill((slot_BGR < 0) | (position < pad_B11), -1)

    def keys(self, layer: int) -> Tensor:
        """A padded copy, ``k_BGSD``."""
        return self.k[self.index[layer]][0, 0, self._slots(self.index[layer])[0]]

    def values(self, layer: int) -> Tensor:
        """A padded copy, ``v_BGSD``."""
        return self.v[self.index[layer]][0, 0, self._slots(self.index[layer])[0]]

    def gather(self, layer: int, token_BGR: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values at positions (second axis: KV heads, or query heads)."""
        i = self.index[layer]
        place_BGR = find(self.positions(layer), token_BGR).clamp_min(0)
        slot_BGS = self._slots(i)[0]
        slot_BGS = slot_BGS.repeat_interleave(token_BGR.shape[1] // slot_BGS.shape[1], 1)
        slot_BGR = slot_BGS.gather(-1, place_BGR)
        return self.k[i][0, 0, slot_BGR], self.v[i][0, 0, slot_BGR]

    def packed(self, layer: int) -> tuple[Spans, SpanView] | None:
        """All tokens, in place: every head has the block as its pool and runs of its own there."""
        i = self.index[layer]
        if self.padded[i]:
            return None
        heads = self.first_BG[i].shape
        start = torch.arange(0, self.num_used(i), RUN_TOKENS, device=self.first_BG[i].device)
        used_BG1 = (self.kept_BG[i] + self.added[i])[..., None]
        first_BGC = (self.first_BG[i][..., None] + start).int()
        size_BGC = (used_BG1 - start).clamp(0, RUN_TOKENS).int()
        run = torch.arange(len(start), device=start.device, dtype=torch.int32)
        spans = Spans(
            first_BGC=first_BGC, size_BGC=size_BGC,
            chosen_BGN=run.expand(*heads, -1).contiguous(), largest=RUN_TOKENS,
        )  # fmt: skip
        keys, values = (part.expand(*heads, -1, -1) for part in (self.k[i], self.v[i]))
        none = torch.zeros(heads[0], dtype=torch.int32, device=keys.device)
        return spans, SpanView(
            Pool(keys, values, first_BGC, size_BGC), Steady(keys[:, :, :0], values[:, :, :0], none)
        )

    def footprint(self) -> Footprint:
        held = (self.k, self.v, self.position_S, self.first_BG, self.kept_BG)
        return Footprint(device=sum(tensor.nbytes for kind in held for tensor in kind))

    def close(self) -> None:
        """Free the memory."""
        super().close()
        self._forget()
