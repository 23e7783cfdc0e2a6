"""Vectors in 8 or 4 bits, as kernels read them."""

from typing import NamedTuple

import torch
from torch import Tensor


class Codes(NamedTuple):
    """Vectors ``mean + scale * code``, of every cluster of a KV head.

    ``code_BGCM`` (int8) has a byte for each dim, or for two: inside a block of dims that share one
    of the scales ``scale_BGCN`` (float16), the first half is in the low four bits. ``mean_BGD`` is
    float32.
    """

    code_BGCM: Tensor
    scale_BGCN: Tensor
    mean_BGD: Tensor

    @property
    def bits(self) -> int:
        """Bits of a number."""
        return 8 * self.code_BGCM.shape[-1] // self.mean_BGD.shape[-1]

    @property
    def whole_blocks(self) -> bool:
        """Whether the dims fill blocks of 32, as the kernels want them."""
        return self.mean_BGD.shape[-1] % 32 == 0


def unpack(code: Tensor, blocks: int, bits: int) -> Tensor:
    """Numbers of ``code`` (axes ``...M``) by block, int8, axes ``...`` blocks x numbers."""
    code = code.unflatten(-1, (blocks, -1))
    if bits == 8:
        return code
    return torch.cat([(code << 4) >> 4, code >> 4], -1)  # shifts of signed bytes keep the sign


def pack(number: Tensor, bits: int) -> Tensor:
    """The reverse of ``unpack``."""
    if bits == 4:
        low, high = number.chunk(2, -1)
        number = (low & 15) | (high << 4)
    return number.flatten(-2).to(torch.int8)


def decode(vectors: Tensor | Codes) -> Tensor:
    """``BGCD``: vectors that are stored as they are, or float32 of codes."""
    if isinstance(vectors, Tensor):
        return vectors
    number = unpack(vectors.code_BGCM, vectors.scale_BGCN.shape[-1], vectors.bits)
    scaled = number.float() * vectors.scale_BGCN.float()[..., None]
    return scaled.flatten(-2) + vectors.mean_BGD[:, :, None]
