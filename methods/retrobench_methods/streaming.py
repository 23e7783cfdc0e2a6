"""Streaming attention: sinks and a recent window only (StreamingLLM, arXiv 2309.17453)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from retrobench.core.method import AttentionArgs
from retrobench.engine.attention.selective import (
    Selection,
    SelectiveMethod,
    StatelessIndex,
    StaticConfig,
    static_mask,
    top_tokens,
)
from retrobench.memory.placement import Store


class RecentIndex(StatelessIndex):
    """Scores a token by its position: the retrieval budget extends the recent window."""

    def select(self, layer: int, q_BHTD: Tensor, store: Store, args: AttentionArgs) -> Selection:
        """The most recent tokens and the sinks."""
        keys = store.keys(layer)
        static, exists = static_mask(
            self.shape.pad_tokens,
            keys.shape[2],
            self.config.sink_tokens,
            self.config.local_tokens,
            keys.device,
        )
        position = torch.arange(keys.shape[2], device=keys.device, dtype=torch.float32)
        return Selection(
            top_tokens(position.expand(keys.shape[:3]), static, exists, self.retrieved)
        )


class Streaming(SelectiveMethod):
    """Sinks plus a recent window of the whole budget. Positions are not re-numbered."""

    name = "streaming"

    @dataclass(frozen=True, kw_only=True)
    class Config(StaticConfig):
        """Options of streaming."""

    def make_index(self) -> RecentIndex:
        """Recency."""
        return RecentIndex(self.config, self.shape, self.budget)
