"""Random selection: the floor that every selector must beat at the same budget."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from retrobench.core.budget import Budget
from retrobench.core.method import AttentionArgs
from retrobench.core.shapes import KVShape
from retrobench.core.spec import option
from retrobench.engine.attention.index import ScoringIndex, StaticConfig
from retrobench.engine.attention.selective import SelectiveMethod
from retrobench.memory.selection import Tokens
from retrobench.memory.store import KVStore


class RandomIndex(ScoringIndex):
    """Fresh uniform scores for every layer and step, from a seeded generator."""

    def __init__(self, config: Any, shape: KVShape, budget: Budget | None) -> None:
        super().__init__(config, shape, budget)
        self.generator = torch.Generator().manual_seed(config.seed)

    def select(self, layer: int, q_BHTD: Tensor, store: KVStore, args: AttentionArgs) -> Tokens:
        """A random set per KV head."""
        size = (self.shape.batch, self.shape.num_kv_heads, store.length(layer))
        score = torch.rand(size, generator=self.generator).to(q_BHTD.device)
        return Tokens(token_BGR=self.best(score))


class Random(SelectiveMethod):
    """Random tokens at the method's budget, plus the static zone."""

    name = "random"
    index_class = RandomIndex

    @dataclass(frozen=True, kw_only=True)
    class Config(StaticConfig):
        """Options of random."""

        seed: int = option(0, "seed of the selection", low=0)
