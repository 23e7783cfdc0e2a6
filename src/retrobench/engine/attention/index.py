"""Indexes: which tokens a decode step attends, and the static zone that all selectors share."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from retrobench.core.budget import Budget
from retrobench.core.method import AttentionArgs, PromptLayer
from retrobench.core.shapes import Footprint, KVShape
from retrobench.core.spec import option
from retrobench.memory.placement import Holder
from retrobench.memory.selection import Selection
from retrobench.memory.store import KVStore

SINK_TOKENS, LOCAL_TOKENS = 4, 64  # RetroInfer's static zone (paper 5.1), shared by all controls


@dataclass(frozen=True, kw_only=True)
class StaticConfig:
    """Options of every selector: the always-kept zone and the share that is retrieved."""

    retrieval_frac: float = option(
        0.018,
        "share of the context retrieved per step, beside the static zone",
        above=0,
        high=1,
        hint="for a token count use budget=...tok",
    )
    sink_tokens: int = option(SINK_TOKENS, "first tokens, always attended", low=0)
    local_tokens: int = option(LOCAL_TOKENS, "last tokens, always attended", low=1)


class Index(Holder):
    """Chooses tokens. State is kept per layer, as tensors; this base keeps none."""

    def __init__(self, config: Any, shape: KVShape, budget: Budget | None) -> None:
        self.config, self.shape, self.budget = config, shape, budget

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


class ScoringIndex(Index):
    """Base of indexes that score every token: the best ones beside the static zone win."""

    def __init__(self, config: Any, shape: KVShape, budget: Budget | None) -> None:
        super().__init__(config, shape, budget)
        self.retrieved = retrieved_tokens(config, shape, budget)

    def best(self, score_BGS: Tensor) -> Tensor:
        """``token_BGR``: the static zone and the best-scored rest (axis 1: KV or query heads)."""
        static, exists = static_mask(
            self.shape.pad_tokens,
            score_BGS.shape[-1],
            self.config.sink_tokens,
            self.config.local_tokens,
            score_BGS.device,
        )
        num_static = self.config.sink_tokens + self.config.local_tokens
        return top_tokens(score_BGS, static, exists, self.retrieved, num_static)


def retrieved_tokens(config: Any, shape: KVShape, budget: Budget | None) -> tuple[int, ...]:
    """Tokens to retrieve beside the static zone, for each row of the batch.

    A budget covers the static zone too (it is the number of exactly attended tokens).
    """
    counts = []
    for pad in shape.pad_tokens:
        context = shape.prompt_tokens - pad
        if budget is None:
            counts.append(max(1, round(config.retrieval_frac * context)))
            continue
        total = budget.tokens(context, shape.kv_bytes_per_token)
        static = config.sink_tokens + config.local_tokens
        if total <= static and total < context:
            raise ValueError(
                f"budget: {budget} is {total} tokens of a context of {context}, but the static "
                f"zone alone takes {static} (method.sink_tokens + method.local_tokens); "
                "raise the budget or shrink the static zone"
            )
        counts.append(total - static if total < context else context)
    return tuple(counts)


def static_mask(
    pad_tokens: tuple[int, ...], length: int, sink_tokens: int, local_tokens: int, device: Any
) -> tuple[Tensor, Tensor]:
    """Which positions are static, and which exist at all: two ``BS`` masks."""
    position = torch.arange(length, device=device)
    pad_B1 = torch.tensor(pad_tokens, device=device)[:, None]
    exists = position >= pad_B1
    static = exists & ((position < pad_B1 + sink_tokens) | (position >= length - local_tokens))
    return static, exists


def top_tokens(
    score_BGS: Tensor,
    static_BS: Tensor,
    exists_BS: Tensor,
    retrieved: Sequence[int] | Tensor,
    num_static: int,
) -> Tensor:
    """Positions of the static zone and of the best-scored rest, ``token_BGR``, -1 padded.

    ``retrieved`` is a count per row, or ``retrieved_BG`` with a count for every head;
    ``num_static`` bounds the static tokens of a row. Nothing waits for the device.
    """
    tokens = score_BGS.shape[-1]
    free = exists_BS & ~static_BS
    score = score_BGS.masked_fill(~free[:, None], -torch.inf)
    limit = torch.as_tensor(retrieved, device=score.device)
    known = None if isinstance(retrieved, Tensor) else max(retrieved)
    width = min(tokens, int(limit.max()) if known is None else known)
    limit = limit.reshape(*limit.shape, *[1] * (3 - limit.dim()))
    value, token = score.topk(width, -1)
    rank = torch.arange(width, device=score.device)
    token = token.masked_fill((rank >= limit) | (value == -torch.inf), -1)
    order = static_BS.int().sort(dim=-1, descending=True, stable=True)
    num_static = min(tokens, num_static)
    fixed = order.indices[:, :num_static].masked_fill(order.values[:, :num_static] == 0, -1)
    fixed = fixed[:, None].expand(-1, score.shape[1], -1)
    return torch.cat([fixed, token], -1)
