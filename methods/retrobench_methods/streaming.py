"""Streaming attention: sinks and a recent window only (StreamingLLM, arXiv 2309.17453)."""

from dataclasses import dataclass

import torch
from torch import Tensor

from retrobench.core.method import AttentionArgs
from retrobench.engine.attention.index import ScoringIndex, StaticConfig
from retrobench.engine.attention.selective import SelectiveMethod
from retrobench.memory.selection import Tokens
from retrobench.memory.store import KVStore


class RecentIndex(ScoringIndex):
    """Scores a token by its position: the retrieval budget extends the recent window."""

    def select(self, layer: int, q_BHTD: Tensor, store: KVStore, args: AttentionArgs) -> Tokens:
        """The most recent tokens and the sinks."""
        length = store.length(layer)
        position = torch.arange(length, device=q_BHTD.device, dtype=torch.float32)
        score = position.expand(self.shape.batch, self.shape.num_kv_heads, length)
        return Tokens(token_BGR=self.best(score))


class Streaming(SelectiveMethod):
    """Sinks plus a recent window of the whole budget. Positions are not re-numbered."""

    name = "streaming"

    @dataclass(frozen=True, kw_only=True)
    class Config(StaticConfig):
        """Options of streaming."""

    def make_index(self) -> RecentIndex:
        """Recency."""
        return RecentIndex(self.config, self.shape, self.budget)
