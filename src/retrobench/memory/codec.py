"""How a store writes keys and values down: as they are, or in 8 or 4 bits with scales.

A vector (one token of one KV head) is quantised symmetrically with one float16 scale, or one scale
per group of 32 channels in 4 bits.
"""

import torch
from retrobench_kernels.codes import BLOCK_DIMS, pack, unpack
from torch import Tensor

from retrobench.core.shapes import DTYPE_BYTES

CODECS = ("none", "int8", "int4")


class Plain:
    """Vectors ``...D`` as they are."""

    def __init__(self, head_dim: int, dtype: str) -> None:
        self.head_dim, self.dtype = head_dim, dtype

    def encode(self, vectors: Tensor) -> tuple[Tensor, ...]:
        """What is stored: tensors of the same leading axes."""
        return (vectors.to(getattr(torch, self.dtype)),)

    def decode(self, stored: tuple[Tensor, ...]) -> Tensor:
        """The vectors, in the shape's dtype."""
        return stored[0]

    def bytes_per_vector(self) -> int:
        """Stored bytes."""
        return self.head_dim * DTYPE_BYTES[self.dtype]


class Quantised:
    """Vectors ``...D`` as integers of ``bits`` bits with scales; two 4-bit numbers share a byte."""

    def __init__(self, head_dim: int, dtype: str, bits: int, group: int | None = None) -> None:
        self.head_dim, self.dtype, self.bits = head_dim, getattr(torch, dtype), bits
        self.group = group or (head_dim if bits == 8 or head_dim % BLOCK_DIMS else BLOCK_DIMS)
        self.top = 2 ** (bits - 1) - 1
        assert bits == 8 or head_dim % 2 == 0, "4-bit vectors need an even head dim"

    def encode(self, vectors: Tensor) -> tuple[Tensor, ...]:
        """``(code, scale)``."""
        grouped = vectors.float().unflatten(-1, (-1, self.group))
        scale = (grouped.abs().amax(-1, keepdim=True) / self.top).clamp_min(1e-7).half()
        number = (grouped / scale.float()).round().clamp(-self.top, self.top).to(torch.int8)
        return pack(number, self.bits), scale[..., 0]

    def decode(self, stored: tuple[Tensor, ...]) -> Tensor:
        """The vectors, rounded."""
        code, scale = stored
        number = unpack(code, scale.shape[-1], self.bits)
        return (number.float() * scale.float()[..., None]).flatten(-2).to(self.dtype)

    def bytes_per_vector(self) -> int:
        """Codes and scales."""
        return self.head_dim * self.bits // 8 + 2 * (self.head_dim // self.group)


def make_codec(name: str, head_dim: int, dtype: str) -> Plain | Quantised:
    """The codec of a name in ``CODECS``."""
    if name == "none":
        return Plain(head_dim, dtype)
    return Quantised(head_dim, dtype, {"int8": 8, "int4": 4}[name])
