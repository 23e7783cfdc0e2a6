"""Random selection: the floor that every selector must beat at the same budget."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from retrobench.core.budget import Budget
from retrobench.core.method import AttentionArgs
from retrobench.core.shapes import KVShape
from retrobench.core.spec import option
from retrobench.engine.attention.selective import (
    Selection,
    SelectiveMethod,
    StatelessIndex,
    StaticConfig,
    static_mask,
    top_tokens,
)
from retrobench.memory.placement import Store


class RandomIndex(StatelessIndex):
    """Fresh uniform scores for every layer and step, from a seeded generator."""

    def __init__(self, config: Any, shape: KVShape, budget: Budget | None) -> None:
        super().__init__(config, shape, budget)
        self.generator = torch.Generator().manual_seed(config.seed)

    def select(self, layer: int, q_BHTD: Tensor, store: Store, args: AttentionArgs) -> Selection:
        """A random set per KV head."""
        keys = store.keys(layer)
        score = torch.rand(keys.shape[:3], generator=self.generator).to(keys.device)
        static, exists = static_mask(
            self.shape.pad_tokens,
            keys.shape[2],
            self.config.sink_tokens,
            self.config.local_tokens,
            keys.device,
        )
        return Selection(top_tokens(score, static, exists, self.retrieved))


class Random(SelectiveMethod):
    """Random tokens at the method's budget, plus the static zone."""

    name = "random"

    @dataclass(frozen=True, kw_only=True)
    class Config(StaticConfig):
        """Options of random."""

        seed: int = option(0, "seed of the selection", low=0)

    def make_index(self) -> RandomIndex:
        """Seeded uniform scores."""
        return RandomIndex(self.config, self.shape, self.budget)
