"""Indexes: which tokens a decode step attends, and the static zone that all selectors share."""

from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from retrobench.core.budget import Budget, row_budgets
from retrobench.core.method import AttentionArgs, PromptLayer
from retrobench.core.shapes import Footprint, KVShape
from retrobench.core.spec import context_share, option
from retrobench.memory.placement import Holder
from retrobench.memory.selection import Selection
from retrobench.memory.store import KVStore

SINK_TOKENS, LOCAL_TOKENS = 4, 64  # RetroInfer's static zone (paper 5.1), shared by all controls


@dataclass(frozen=True, kw_only=True)
class StaticConfig:
    """Options of every selector: the always-kept zone and the share that is retrieved."""

    retrieval_frac: float = context_share(
        0.018, "share of the context retrieved per step, beside the static zone"
    )
    sink_tokens: int = option(SINK_TOKENS, "first tokens, always attended", low=0)
    local_tokens: int = option(LOCAL_TOKENS, "last tokens, always attended", low=1)


class Index(Holder):
    """Chooses tokens. State is kept per layer, as tensors; this base keeps none."""

    def __init__(self, config: Any, shape: KVShape, budget: Budget | None) -> None:
        self.config, self.shape, self.budget = config, shape, budget
        self.top_p = None if budget is None else budget.top_p
        self.slot = {layer: i for i, layer in enumerate(shape.layers)}

    @classmethod
    def plan(cls, config: Any, shape: KVShape, budget: Budget | None = None) -> Footprint:
        """Bytes before allocation: those of an index on torch's meta device, which has no memory.

        ValueError where options and budget contradict each other.
        """
        return cls(config, replace(shape, device="meta"), budget).footprint()

    def build(self, layer: int, store: KVStore, prompt: PromptLayer) -> None:
        """A layer of the prompt is in the store. ``prompt`` also has what ``needs`` asked for."""

    def append(self, layer: int, k_BGTD: Tensor) -> None:
        """One token was added to the store."""

    def select(self, layer: int, q_BHTD: Tensor, store: KVStore, args: AttentionArgs) -> Selection:
        """What the query of one decode step attends."""
        raise NotImplementedError


@dataclass(frozen=True, slots=True)
class StaticZone:
    """The first and last tokens of every row, which are always attended."""

    pad_tokens: tuple[int, ...]
    sink_tokens: int
    local_tokens: int

    def tokens(self, length: int, device: Any) -> Tensor:
        """Their positions in a context of ``length``, ``token_BR``, -1 padded at the end."""
        return _zone_tokens(self, length, device)

    def outside(self, length: int, device: Any) -> Tensor:
        """Which positions hold a token outside the zone, ``free_BS``."""
        position = torch.arange(length, device=device)
        pad_B1 = torch.tensor(self.pad_tokens, device=device)[:, None]
        return (position >= pad_B1 + self.sink_tokens) & (position < length - self.local_tokens)


@lru_cache(maxsize=4)  # all layers of a step ask for the same
def _zone_tokens(zone: StaticZone, length: int, device: Any) -> Tensor:
    most = zone.sink_tokens + zone.local_tokens
    pad_B1 = torch.tensor(zone.pad_tokens, device=device)[:, None]
    rank = torch.arange(min(length, most), device=device)
    between_B1 = (length - pad_B1 - most).clamp_min(0)
    token = pad_B1 + rank + (rank >= zone.sink_tokens) * between_B1
    return token.masked_fill(token >= length, -1)


class ScoringIndex(Index):
    """Base of indexes that score every token: the best ones beside the static zone win."""

    def __init__(self, config: Any, shape: KVShape, budget: Budget | None) -> None:
        super().__init__(config, shape, budget)
        self.retrieved = retrieved_tokens(config, shape, budget)
        self.zone = StaticZone(shape.pad_tokens, config.sink_tokens, config.local_tokens)

    def shared(self, weight_BGNS: Tensor) -> Tensor:
        """Scores of a KV head from the softmax weights of its query heads: their sum, or mean.

        A budget of attention mass holds for the mean.
        """
        score_BGS = weight_BGNS.sum(2)
        return score_BGS if self.top_p is None else score_BGS / weight_BGNS.shape[2]

    def best(self, score_BGS: Tensor, retrieved_BG: Tensor | None = None) -> Tensor:
        """Positions of the static zone and of the best-scored rest, ``token_BGR``, -1 padded.

        Axis 1 may be query heads. ``retrieved_BG`` gives every head a number of its own; without
        it nothing waits for the device. With a budget of attention mass, scores are the weights
        of a softmax: the fewest tokens win that bring the mass, the zone's included, to ``top_p``.
        """
        tokens, device = score_BGS.shape[-1], score_BGS.device
        low, high = (
            min(self.shape.pad_tokens) + self.zone.sink_tokens,
            tokens - self.zone.local_tokens,
        )
        score_BGF = score_BGS[..., low : max(low, high)]
        if max(self.shape.pad_tokens) > min(self.shape.pad_tokens):
            free_BF = self.zone.outside(tokens, device)[:, low : max(low, high)]
            score_BGF = score_BGF.masked_fill(~free_BF[:, None], -torch.inf)
        most = max(self.retrieved) if retrieved_BG is None else int(retrieved_BG.max())
        value, token = score_BGF.topk(min(most, score_BGF.shape[-1]), -1)
        missing = value == -torch.inf
        if retrieved_BG is not None or min(self.retrieved) < most:
            limit = torch.tensor(self.retrieved, device=device)[:, None]
            limit = limit if retrieved_BG is None else retrieved_BG
            missing = missing | (torch.arange(token.shape[-1], device=device) >= limit[..., None])
        if self.top_p is not None:
            free_BG1 = score_BGF.clamp_min(0).sum(-1, keepdim=True)
            missing = missing | enough(value, free_BG1, self.top_p)
        fixed_B1R = self.zone.tokens(tokens, device)[:, None]
        token = (token + low).masked_fill(missing, -1)
        return torch.cat([fixed_B1R.expand(-1, token.shape[1], -1), token], -1)


def enough(weight_BGR: Tensor, all_BG1: Tensor, top_p: float) -> Tensor:
    """Where falling weights are no longer needed: what is left from there on is ``1 - top_p``.

    ``all_BG1`` are all weights that may be left out, shares of the whole softmax.
    """
    if top_p >= 1:  # whatever rounding says of the last weights
        return torch.zeros_like(weight_BGR, dtype=torch.bool)
    before_BGR = weight_BGR.cumsum(-1) - weight_BGR
    return all_BG1 - before_BGR <= 1 - top_p


def retrieved_tokens(config: Any, shape: KVShape, budget: Budget | None) -> tuple[int, ...]:
    """Tokens to retrieve beside the static zone, for each row of the batch.

    A budget covers the static zone too (it is the number of exactly attended tokens).
    """
    static = config.sink_tokens + config.local_tokens
    why = f"the static zone alone takes {static} (method.sink_tokens + method.local_tokens)"
    counts = []
    for context, total in row_budgets(shape, budget, static, why):
        if total is None:
            counts.append(max(1, round(config.retrieval_frac * context)))
        else:
            counts.append(total - static if total < context else shape.max_tokens)
    return tuple(counts)
