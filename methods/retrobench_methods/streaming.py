"""Streaming attention: sinks and a recent window only (StreamingLLM, arXiv 2309.17453)."""

from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from retrobench.core.method import AttentionArgs
from retrobench.engine.attention.index import ScoringIndex, StaticZone
from retrobench.engine.attention.selective import SelectiveMethod
from retrobench.memory.selection import Tokens
from retrobench.memory.store import KVStore


class RecentIndex(ScoringIndex):
    """The retrieval budget extends the recent window."""

    def select(self, layer: int, q_BHTD: Tensor, store: KVStore, args: AttentionArgs) -> Tokens:
        """The sinks and the most recent tokens, the same for all heads."""
        length = store.length(layer)
        token_B1R = _recent(self.zone, self.retrieved, length, q_BHTD.device)[:, None]
        return Tokens(token_BGR=token_B1R.expand(-1, self.shape.num_kv_heads, -1))


@lru_cache(maxsize=4)  # all layers of a step ask for the same
def _recent(zone: StaticZone, retrieved: tuple[int, ...], length: int, device: Any) -> Tensor:
    """Positions of the zone and of the ``retrieved`` tokens before its recent ones, ``token_BR``.

    -1 where a row has no such token.
    """
    start_B1, retrieved_B1 = (
        torch.tensor(counts, device=device)[:, None] for counts in (zone.pad_tokens, retrieved)
    )
    age = torch.arange(min(length, max(retrieved)), device=device)
    token_BR = length - zone.local_tokens - 1 - age
    missing_BR = (token_BR < start_B1 + zone.sink_tokens) | (age >= retrieved_B1)
    token_BR = token_BR.expand_as(missing_BR).masked_fill(missing_BR, -1)
    return torch.cat([zone.tokens(length, device), token_BR], -1)


class Streaming(SelectiveMethod):
    """Sinks plus a recent window of the whole budget. Positions are not re-numbered."""

    name = "streaming"
    index_class = RecentIndex
