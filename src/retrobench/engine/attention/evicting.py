"""EvictingMethod: the template of methods that drop part of the prompt for good, once."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from retrobench.core.budget import Budget, row_budgets
from retrobench.core.method import AttentionArgs, PromptLayer
from retrobench.core.shapes import Footprint, KVShape
from retrobench.core.spec import option
from retrobench.engine.attention.index import Index
from retrobench.engine.attention.selective import SelectiveMethod
from retrobench.memory.ragged import RaggedStore
from retrobench.memory.selection import Everything
from retrobench.memory.store import KVStore


@dataclass(frozen=True, kw_only=True)
class EvictingConfig:
    """Options of every method that evicts."""

    capacity_tokens: int = option(
        2048, "prompt tokens that a KV head keeps where no budget is given", low=1
    )


def kept_tokens(
    config: Any,
    shape: KVShape,
    budget: Budget | None,
    always: int = 0,
    named: str = "method.window_tokens",
) -> tuple[int, ...]:
    """Prompt tokens that the KV heads of each row keep.

    Tokens that come later are kept beside them. ValueError for a budget that has no room for more
    than the last tokens that are ``always`` kept; ``named`` is their option.
    """
    why = f"the window at its end alone takes {always} ({named})"
    totals = (total for _, total in row_budgets(shape, budget, always, why))
    return tuple(
        min(tokens, config.capacity_tokens if total is None else total)
        for tokens, total in zip(shape.prefilled, totals, strict=True)
    )


class EvictingIndex(Index):
    """Scores every token of the prompt once, and evicts all but the best of each KV head."""

    def __init__(self, config: Any, shape: KVShape, budget: Budget | None) -> None:
        super().__init__(config, shape, budget)
        kept_LB = self.kept(config, shape, budget)
        self.kept_of = dict(zip(shape.layers, kept_LB, strict=True))

    @classmethod
    def kept(cls, config: Any, shape: KVShape, budget: Budget | None) -> list[tuple[int, ...]]:
        """Tokens that a KV head keeps, by layer and row: ``kept_LB``. Here equal in all layers."""
        return [kept_tokens(config, shape, budget)] * len(shape.layers)

    def scores(self, layer: int, prompt: PromptLayer) -> Tensor:
        """``score_BGS``; infinite: always kept."""
        raise NotImplementedError

    def counts(self, score_BGS: Tensor, kept: Sequence[int]) -> Tensor:
        """Tokens of every KV head, ``count_BG``: ``kept`` on average. Here equal in all heads."""
        count_B1 = torch.tensor(kept, device=score_BGS.device)[:, None]
        return count_B1.expand(-1, score_BGS.shape[1])

    def build(self, layer: int, store: KVStore, prompt: PromptLayer) -> None:
        """Evict what scores low, and padding."""
        tokens, pads = prompt.k_BGSD.shape[2], self.shape.pad_tokens
        there = [max(0, tokens - pad) for pad in pads]
        kept = [min(count, most) for count, most in zip(self.kept_of[layer], there, strict=True)]
        score_BGS = prompt.k_BGSD.new_zeros(prompt.k_BGSD.shape[:3])
        if kept != there:
            score_BGS = self.scores(layer, prompt)
        pad_B11 = torch.tensor(pads, device=score_BGS.device)[:, None, None]
        padding = torch.arange(tokens, device=score_BGS.device) < pad_B11
        score_BGS = score_BGS.masked_fill(padding, -torch.inf)
        store.evict(layer, best(score_BGS, self.counts(score_BGS, kept)))

    def select(self, layer: int, q_BHTD: Tensor, store: KVStore, args: AttentionArgs) -> Everything:
        """All that is left."""
        return Everything()


def best(score_BGS: Tensor, count_BG: Tensor) -> Tensor:
    """Positions of each head's best scores in rising order, ``token_BGR``, -1 padded.

    Of equal scores the earlier positions win, so that padding changes nothing.
    """
    tokens, width = score_BGS.shape[-1], int(count_BG.max())
    order = score_BGS.sort(dim=-1, descending=True, stable=True).indices[..., :width]
    rank = torch.arange(width, device=order.device)
    token = order.masked_fill(rank >= count_BG[..., None], tokens).sort(-1).values
    return token.masked_fill(token == tokens, -1)


class EvictingMethod(SelectiveMethod):
    """Attends what an ``EvictingIndex`` has left of the prompt, and all later tokens."""

    Config = EvictingConfig
    index_class: ClassVar[type[EvictingIndex]] = EvictingIndex  # type: ignore[assignment]

    def make_store(self) -> RaggedStore:
        """One in which heads may keep different numbers of tokens."""
        return RaggedStore(self.shape)

    @classmethod
    def plan(cls, config: Any, shape: KVShape, budget: Budget | None = None) -> Footprint:
        """What is kept, and room for the answer."""
        kept_LB = cls.index_class.kept(config, shape, budget)
        return RaggedStore.plan(shape, [sum(kept) * shape.num_kv_heads for kept in kept_LB])
