"""What SnapKV, AdaKV and PyramidKV share: the prompt's last tokens vote for the others."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import avg_pool1d, max_pool1d, pad

from retrobench.core.budget import Budget
from retrobench.core.method import Needs, PromptLayer
from retrobench.core.shapes import KVShape
from retrobench.core.spec import option, require_odd
from retrobench.engine.attention.evicting import (
    EvictingConfig,
    EvictingIndex,
    EvictingMethod,
    kept_tokens,
)
from retrobench.engine.attention.exact import attention_mass

_POOLS = {"max": max_pool1d, "avg": avg_pool1d}


@dataclass(frozen=True, kw_only=True)
class VotingConfig(EvictingConfig):
    """Defaults of FasterDecoding/SnapKV e216ddc, experiments/LongBench/config/*_w32_k7_maxpool."""

    window_tokens: int = option(
        32, "last tokens of the prompt: they vote, and are always kept", low=1
    )
    pool: str = option(
        "max", "how a token's vote is pooled with its neighbours'", choices=tuple(_POOLS)
    )
    pool_tokens: int = option(7, "tokens whose votes are pooled, an odd number", low=1)

    def __post_init__(self) -> None:
        require_odd(pool_tokens=self.pool_tokens)
        if self.capacity_tokens <= self.window_tokens:
            raise ValueError(
                f"capacity_tokens={self.capacity_tokens} must be greater than "
                f"window_tokens={self.window_tokens}, which is part of it"
            )


class VotingIndex(EvictingIndex):
    """A token's score is the attention that the window gives it."""

    @classmethod
    def kept(cls, config: Any, shape: KVShape, budget: Budget | None) -> list[tuple[int, ...]]:
        """The budget, equal in all layers."""
        return [kept_tokens(config, shape, budget, config.window_tokens)] * len(shape.layers)

    def scores(self, layer: int, prompt: PromptLayer) -> Tensor:
        """Votes of the window's queries, mean over a KV head's query heads, then pooled."""
        assert prompt.q_BHWD is not None
        window, tokens = self.config.window_tokens, prompt.k_BGSD.shape[2]
        queries = prompt.q_BHWD[:, :, -window:]
        mass_BHS = attention_mass(queries, prompt.k_BGSD, prompt.args, self.shape.pad_tokens)
        vote_BGS = mass_BHS.unflatten(1, (self.shape.num_kv_heads, -1)).mean(2)
        width = self.config.pool_tokens
        pooled = _POOLS[self.config.pool](vote_BGS[..., : tokens - window], width, 1, width // 2)
        return pad(pooled, (0, window), value=torch.inf)


class VotingMethod(EvictingMethod):
    """Keeps the window and what it votes for."""

    Config = VotingConfig
    index_class = VotingIndex

    @classmethod
    def needs_of(cls, config: Any) -> Needs:
        """The queries of the window."""
        return Needs(prompt_queries=config.window_tokens)
