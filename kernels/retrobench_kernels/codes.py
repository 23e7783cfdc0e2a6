"""Vectors in 8 or 4 bits, as kernels read them."""

from typing import NamedTuple

import torch
from torch import Tensor

BLOCK_DIMS = 32  # dims that share a scale in 4 bits
SIDE = 16  # clusters that C++ scores at a time


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
        """Whether the dims fill blocks, as the kernels want them."""
        return self.mean_BGD.shape[-1] % BLOCK_DIMS == 0


class LaneCodes(NamedTuple):
    """The same with 16 clusters side by side, as C++ scores them.

    ``word_BGKEW`` (int32) has axes K of 16 clusters each, E of words, and W of a cluster's place
    among the 16. A word holds 8 dims in 4 bits or 4 in 8: the even ones in its lower half, then the
    odd ones. ``scale_BGKNW`` (float16) goes with it. Clusters beyond the last one are anything.
    """

    word_BGKEW: Tensor
    scale_BGKNW: Tensor
    mean_BGD: Tensor

    @property
    def bits(self) -> int:
        """Bits of a number."""
        return 32 * self.word_BGKEW.shape[-2] // self.mean_BGD.shape[-1]


def words(number: Tensor, bits: int) -> Tensor:
    """Numbers ``...D`` as the words of ``LaneCodes``, int32 ``...E``."""
    halves = number.int().unflatten(-1, (-1, 16 // bits, 2)).mT.flatten(-2)
    shift = bits * torch.arange(32 // bits, device=number.device, dtype=torch.int32)
    return ((halves & (2**bits - 1)) << shift).sum(-1, dtype=torch.int32)


def numbers(word: Tensor, bits: int) -> Tensor:
    """The reverse of ``words``."""
    shift = bits * torch.arange(32 // bits, device=word.device, dtype=torch.int32)
    halves = (word[..., None] << (32 - bits - shift)) >> (32 - bits)  # the sign is kept
    return halves.unflatten(-1, (2, -1)).mT.flatten(-3)


def to_lanes(codes: Codes) -> LaneCodes:
    """Codes whose dims fill blocks, side by side."""
    number = unpack(codes.code_BGCM, codes.scale_BGCN.shape[-1], codes.bits).flatten(-2)
    missing = -number.shape[2] % SIDE

    def beside(x_BGCE: Tensor) -> Tensor:
        padded = torch.nn.functional.pad(x_BGCE, (0, 0, 0, missing))
        return padded.unflatten(2, (-1, SIDE)).mT.contiguous()

    return LaneCodes(beside(words(number, codes.bits)), beside(codes.scale_BGCN), codes.mean_BGD)


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


def decode(vectors: Tensor | Codes | LaneCodes) -> Tensor:
    """``BGCD``: vectors that are stored as they are, or float32 of codes."""
    if isinstance(vectors, Tensor):
        return vectors
    if isinstance(vectors, LaneCodes):
        scale = vectors.scale_BGKNW.mT.flatten(2, 3)
        number = numbers(vectors.word_BGKEW.mT.flatten(2, 3), vectors.bits)
        number = number.unflatten(-1, (scale.shape[-1], -1))
    else:
        scale = vectors.scale_BGCN
        number = unpack(vectors.code_BGCM, scale.shape[-1], vectors.bits)
    return (number.float() * scale.float()[..., None]).flatten(-2) + vectors.mean_BGD[:, :, None]
