"""Streaming attention: sinks and a recent window only (StreamingLLM, arXiv 2309.17453)."""

import torch
from torch import Tensor

from retrobench.core.method import AttentionArgs
from retrobench.engine.attention.index import ScoringIndex
from retrobench.engine.attention.selective import SelectiveMethod
from retrobench.memory.selection import Tokens
from retrobench.memory.store import KVStore


class RecentIndex(ScoringIndex):
    """The retrieval budget extends the recent window."""

    def select(self, layer: int, q_BHTD: Tensor, store: KVStore, args: AttentionArgs) -> Tokens:
        """The sinks and the most recent tokens."""
        length, device = store.length(layer), q_BHTD.device
        fixed_BR = self.zone.tokens(length, device)
        start_B1, retrieved_B1 = (
            torch.tensor(counts, device=device)[:, None]
            for counts in (self.shape.pad_tokens, self.retrieved)
        )
        age = torch.arange(min(length, max(self.retrieved)), device=device)
        token_BR = length - self.zone.local_tokens - 1 - age
        missing_BR = (token_BR < start_B1 + self.zone.sink_tokens) | (age >= retrieved_B1)
        token_BR = token_BR.expand_as(missing_BR).masked_fill(missing_BR, -1)
        token_B1R = torch.cat([fixed_BR, token_BR], -1)[:, None]
        return Tokens(token_BGR=token_B1R.expand(-1, self.shape.num_kv_heads, -1))


class Streaming(SelectiveMethod):
    """Sinks plus a recent window of the whole budget. Positions are not re-numbered."""

    name = "streaming"
    index_class = RecentIndex
