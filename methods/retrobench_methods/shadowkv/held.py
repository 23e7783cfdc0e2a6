"""Chunks that the step before selected: their keys and values are on the device already."""

import torch
from torch import Tensor

from retrobench.core.shapes import KVShape
from retrobench.memory.placement import Holder
from retrobench.memory.store import take


class HeldChunks(Holder):
    """The rebuilt keys and the values of each layer's last selection of ``selected`` chunks.

    Places count the tokens of a row's chunks from its first one. A copy never changes, so what is
    held is right whoever put it there.
    """

    def __init__(self, shape: KVShape, chunks: int, selected: int, chunk_tokens: int) -> None:
        head = (len(shape.layers), shape.batch, shape.num_kv_heads)
        options = {"dtype": getattr(torch, shape.dtype), "device": shape.device}
        self.chunk_tokens = chunk_tokens
        self.k_LBGWD = torch.zeros(*head, selected * chunk_tokens, shape.head_dim, **options)
        self.v_LBGWD = torch.zeros_like(self.k_LBGWD)
        # where a chunk is held, -1: nowhere; the last entry stands for no chunk
        size = (*head, chunks + 1)
        self.slot_LBGC = torch.full(size, -1, dtype=torch.int32, device=shape.device)

    def find(self, i: int, place_BGR: Tensor) -> Tensor:
        """Rows of layer number ``i`` in which tokens are held, ``BGR``; -1: not held."""
        size = self.chunk_tokens
        slot = self.slot_LBGC[i].gather(-1, place_BGR // size).long()
        return (slot * size + place_BGR % size).masked_fill(slot < 0, -1)

    def read(self, i: int, row_BGR: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values of rows; -1 gives any."""
        return take(self.k_LBGWD[i], row_BGR), take(self.v_LBGWD[i], row_BGR)

    def keep(
        self, i: int, place_BGR: Tensor, wanted_BGR: Tensor, k_BGRD: Tensor, v_BGRD: Tensor
    ) -> None:
        """Hold these tokens instead, if they are as many whole chunks as there is room for."""
        if k_BGRD.shape[2] != self.k_LBGWD.shape[3]:
            return
        place = place_BGR.unflatten(-1, (-1, self.chunk_tokens))
        within = torch.arange(self.chunk_tokens, device=place.device)
        wanted = wanted_BGR.unflatten(-1, place.shape[-2:])
        if bool(((place - place[..., :1] != within) & wanted).any()):
            return
        self.k_LBGWD[i], self.v_LBGWD[i] = k_BGRD, v_BGRD
        nothing = self.slot_LBGC.shape[-1] - 1
        chunk = place[..., 0] // self.chunk_tokens
        chunk = chunk.masked_fill(~wanted[..., 0], nothing)
        slot = torch.arange(chunk.shape[-1], device=chunk.device, dtype=torch.int32)
        self.slot_LBGC[i] = -1
        self.slot_LBGC[i].scatter_(-1, chunk, slot.expand(chunk.shape).contiguous())
        self.slot_LBGC[i, ..., nothing] = -1
