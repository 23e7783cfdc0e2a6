"""Oracle top-k: the tokens with the largest true attention weights. The ceiling of selectors."""

from dataclasses import dataclass

import torch
from torch import Tensor

from retrobench.core.method import AttentionArgs
from retrobench.core.spec import choice
from retrobench.engine.attention.index import ScoringIndex, StaticConfig
from retrobench.engine.attention.parts import logits
from retrobench.engine.attention.selective import SelectiveMethod
from retrobench.memory.selection import Tokens
from retrobench.memory.store import KVStore


class OracleIndex(ScoringIndex):
    """Reads every key to rank tokens exactly (its index bytes are those of all keys)."""

    def select(self, layer: int, q_BHTD: Tensor, store: KVStore, args: AttentionArgs) -> Tokens:
        """Top tokens by softmax weight, per query head or summed over the GQA group.

        A budget of attention mass holds for each query head, or for the mean of the group.
        """
        keys = store.keys(layer)
        batch, heads, _, dim = q_BHTD.shape
        groups = keys.shape[1]
        logit = logits(q_BHTD.reshape(batch, groups, heads // groups, dim), keys, args)
        if any(self.shape.pad_tokens):
            pad_B1 = torch.tensor(self.shape.pad_tokens, device=logit.device)[:, None]
            exists_BS = torch.arange(keys.shape[2], device=logit.device) >= pad_B1
            logit = logit.masked_fill_(~exists_BS[:, None, None], -torch.inf)
        if self.config.scope == "query_head":
            score = logit.reshape(batch, heads, -1)
            score = score if self.top_p is None else score.softmax(-1)
        else:
            score = self.shared(logit.softmax(-1))
        tokens = sum(keys.shape[2] - pad for pad in self.shape.pad_tokens)
        read = tokens * self.shape.layer_token_bytes // 2
        return Tokens(token_BGR=self.best(score), index_bytes=read)


class OracleTopK(SelectiveMethod):
    """Exact top-k selection at the method's budget."""

    name = "oracle_topk"
    index_class = OracleIndex
    adaptive = True

    @dataclass(frozen=True, kw_only=True)
    class Config(StaticConfig):
        """Options of oracle_topk."""

        scope: str = choice(
            ("kv_head", "query_head"),
            "one set per KV head (weights summed over its query heads) or per query head",
        )
