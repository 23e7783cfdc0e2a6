"""Clustered keys and values without a model: for timing a cache at any model shape.

Keys follow topics that last some tokens, drift slowly, and share a mean, with channels of unequal
size, which is what real post-RoPE keys look like to a clustering. Queries resemble keys of random
positions. Every batch row, layer and KV head has its own data. Easier than a real model: output
errors on them compare methods, they do not predict accuracy.
"""

from typing import Any

import torch
from torch import Tensor

TOPICS, TOPIC_TOKENS = 64, 32
DRIFT = 0.999  # decay per token of the drifting part of the mean


def keys_and_values(
    batch: int, groups: int, tokens: int, dim: int, dtype: torch.dtype, seed: int, device: str
) -> tuple[Tensor, Tensor]:
    """``k_BGSD`` and ``v_BGSD``; the same for the same arguments on one kind of device."""
    k = torch.empty(batch, groups, tokens, dim, dtype=dtype, device=device)
    v = torch.empty_like(k)
    for row in range(batch):
        for group in range(groups):
            generator = torch.Generator(device).manual_seed(seed + 7919 * row + 104729 * group)
            k[row, group], v[row, group] = _head(tokens, dim, generator, device)
    return k, v


def queries(k_BGSD: Tensor, group: int, seed: int) -> Tensor:
    """One query per head, ``q_BHTD``, near the centred key of a random position."""
    batch, groups, tokens, dim = k_BGSD.shape
    device = k_BGSD.device
    generator = torch.Generator(device).manual_seed(seed)
    position = torch.randint(0, tokens, (batch, groups), generator=generator, device=device)
    index = position[..., None, None].expand(-1, -1, 1, dim)
    sample = k_BGSD[:, :, :: max(1, tokens // 512)].float()
    centred = k_BGSD.gather(2, index).float() - sample.mean(2, keepdim=True)
    spread = sample.std(2, keepdim=True)
    noise = torch.randn(batch, groups, group, dim, generator=generator, device=device)
    q = 0.3 * (centred + 0.7 * spread * noise)
    return q.flatten(1, 2)[:, :, None].to(k_BGSD.dtype)


class SyntheticView:
    """Stands where a model would (``ModelView``): a layer's prediction is the query it will get."""

    def __init__(self, weights_id: str) -> None:
        self.weights_id = weights_id
        self.next: dict[int, Tensor] = {}

    def queries(self, layer: int, hidden_BTM: Tensor) -> Tensor | None:
        """The layer's next query; None for layers that are not there."""
        return self.next.get(layer)

    def projection_bytes(self, layer: int) -> int:
        """None are read."""
        return 0

    def attention_module(self, layer: int) -> Any:
        """There is none."""
        raise ValueError("synthetic keys and values come without modules of a model")

    def rotary(self, layer: int, like: Tensor, position_BT: Tensor) -> tuple[Tensor, Tensor]:
        """There is none."""
        return self.attention_module(layer)


def _head(tokens: int, dim: int, generator: torch.Generator, device: str) -> tuple[Tensor, Tensor]:
    def normal(*size: int) -> Tensor:
        return torch.randn(*size, generator=generator, device=device)

    scale = torch.exp(0.5 * normal(dim))
    count = -(-tokens // TOPIC_TOKENS)
    topic = torch.randint(0, TOPICS, (count,), generator=generator, device=device)
    topic = topic.repeat_interleave(TOPIC_TOKENS)[:tokens]
    anchor = torch.arange(0, tokens, TOPIC_TOKENS, device=device)
    drift = normal(len(anchor), dim) * (1 - DRIFT ** (2 * TOPIC_TOKENS)) ** 0.5
    for i in range(1, len(anchor)):
        drift[i] += DRIFT**TOPIC_TOKENS * drift[i - 1]
    k = 1.2 * normal(TOPICS, dim)[topic] + 0.7 * normal(tokens, dim) + 3 * normal(dim)
    k += 0.5 * drift.repeat_interleave(TOPIC_TOKENS, 0)[:tokens]
    v = 0.7 * normal(TOPICS, dim)[topic] + 0.7 * normal(tokens, dim)
    return k * scale, v
