"""Which position each storage slot holds, once slots and positions differ (evicted, reordered)."""

import torch
from torch import Tensor
from torch.nn.functional import pad

from retrobench.core.shapes import KVShape


class SlotMap:
    """One map per layer; none as long as slot and position are the same."""

    def __init__(self, shape: KVShape) -> None:
        self.shape = shape
        self.position_BGS: list[Tensor | None] = [None] * len(shape.layers)

    def place(self, i: int, position_BGR: Tensor, room: int) -> None:
        """Slots 0, 1, ... hold these positions (-1: nothing), and ``room`` more may follow."""
        self.position_BGS[i] = pad(position_BGR.int(), (0, room), value=-1)

    def append(self, i: int, slot: int, position: int, tokens: int) -> None:
        """New tokens in the next slots."""
        held = self.position_BGS[i]
        if held is not None:
            new = torch.arange(position, position + tokens, device=held.device)
            held[:, :, slot : slot + tokens] = new

    def mapped(self, i: int) -> bool:
        """Whether slots differ from positions."""
        return self.position_BGS[i] is not None

    def positions(self, i: int, used: int) -> Tensor:
        """Positions of the first ``used`` slots, ``BGS``, -1 for padding and empty slots."""
        shape, held = self.shape, self.position_BGS[i]
        if held is None:
            held = torch.arange(used, device=shape.device)
            held = held.expand(shape.batch, shape.num_kv_heads, -1)
        position = held[:, :, :used]
        pad_B11 = torch.tensor(shape.pad_tokens, device=position.device)[:, None, None]
        return position.masked_fill(position < pad_B11, -1)

    def slots(self, i: int, used: int, token_BGR: Tensor) -> Tensor:
        """Slots of positions (any slot where a position is not held or is -1)."""
        if self.position_BGS[i] is None:
            return token_BGR
        return find(self.positions(i, used), token_BGR)

    def num_bytes(self) -> int:
        """Bytes held."""
        return sum(held.nbytes for held in self.position_BGS if held is not None)

    def close(self) -> None:
        """Free the maps."""
        self.position_BGS = [None] * len(self.shape.layers)


def find(position_BGS: Tensor, token_BGR: Tensor) -> Tensor:
    """Where heads hold positions (anywhere if they do not); -1 stays -1.

    The second axis of ``token_BGR`` is KV heads or query heads.
    """
    repeat = token_BGR.shape[1] // position_BGS.shape[1]
    ordered, slot = position_BGS.repeat_interleave(repeat, 1).sort(-1)
    found = torch.searchsorted(ordered, token_BGR.contiguous())
    found = found.clamp_max(position_BGS.shape[-1] - 1)
    return slot.gather(-1, found).masked_fill(token_BGR < 0, -1)
