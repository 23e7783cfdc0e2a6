"""Rotary embeddings as transformers applies them: channel c turns with channel c + D/2."""

import torch
from torch import Tensor


def rotate(x_BGSD: Tensor, cos_BSD: Tensor, sin_BSD: Tensor) -> Tensor:
    """RoPE: vectors rotated by the factors of their positions, float32."""
    x_BGSD = x_BGSD.float()
    return x_BGSD * cos_BSD[:, None] + _quarter_turn(x_BGSD) * sin_BSD[:, None]


def unrotate(x_BGSD: Tensor, cos_BSD: Tensor, sin_BSD: Tensor) -> Tensor:
    """The inverse of ``rotate``; factors may scale (YaRN, longrope)."""
    cos, sin = (part[:, None].float() for part in (cos_BSD, sin_BSD))
    x_BGSD = x_BGSD.float()
    return (x_BGSD * cos - _quarter_turn(x_BGSD) * sin) / (cos.square() + sin.square())


def _quarter_turn(x_BGSD: Tensor) -> Tensor:
    first, second = x_BGSD.chunk(2, -1)
    return torch.cat([-second, first], -1)
