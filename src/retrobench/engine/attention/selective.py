"""SelectiveMethod: the template of methods that attend a chosen part of the cache.

An *index* says WHICH tokens, a *store* says WHERE they live; both are made by overridable factory
methods, so that any index runs on any placement. ``docs/add_a_method.md`` fills this template.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

import torch
from torch import Tensor

from retrobench.core.budget import Budget
from retrobench.core.method import AttentionArgs, Method, Probe
from retrobench.core.shapes import DTYPE_BYTES, Footprint, KVShape
from retrobench.core.spec import option
from retrobench.engine.attention.math import Estimate, attend, causal
from retrobench.memory.placement import (
    DeviceStore,
    PlacementConfig,
    Store,
    make_store,
    plan_store,
)

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


@dataclass(frozen=True, slots=True)
class Selection:
    """Tokens to attend exactly, and optionally clusters to attend through estimates.

    ``token_BGR`` holds positions, -1 for padding; its second axis is KV heads, or query heads for
    selectors that choose per query head. ``estimated_tokens`` counts the tokens (mean per row and
    KV head) that ``estimate`` stands for; ``members`` gives their positions to a probe that asks
    (``Probe.selected``).
    """

    token_BGR: Tensor
    estimate: Estimate | None = None
    estimated_tokens: float = 0.0
    index_bytes: int = 0
    members: Callable[[], Tensor] | None = None


class Index(Protocol):
    """Chooses tokens. State is kept per layer."""

    def build(self, layer: int, store: Store) -> None:
        """The prompt of a layer is complete."""
        ...

    def append(self, layer: int, store: Store) -> None:
        """One token was added to the store."""
        ...

    def select(self, layer: int, q_BHTD: Tensor, store: Store, args: AttentionArgs) -> Selection:
        """Tokens for the query of one decode step."""
        ...

    def footprint(self) -> Footprint:
        """Bytes held."""
        ...


class SelectiveMethod(Method):
    """Exact prefill; each decode step attends ``index.select(...)`` gathered from ``store``."""

    Config: ClassVar[type] = StaticConfig

    def __init__(
        self,
        config: Any,
        shape: KVShape,
        probe: Probe | None = None,
        budget: Budget | None = None,
    ) -> None:
        super().__init__(config, shape, probe, budget)
        self.index: Index = self.make_index()
        self.store: Store = self.make_store()

    def make_index(self) -> Index:
        """The index of this method; the only thing that a simple method must override."""
        raise NotImplementedError

    def make_store(self) -> Store:
        """The store of this method: what its options ask for, if they are ``PlacementConfig``."""
        if isinstance(self.config, PlacementConfig):
            return make_store(self.config, self.shape)
        return DeviceStore(self.shape)

    @classmethod
    def plan(cls, config: Any, shape: KVShape, budget: Budget | None = None) -> Footprint:
        """The store's bytes (indexes that hold memory add theirs), after checking the budget."""
        retrieved_tokens(config, shape, budget)
        if isinstance(config, PlacementConfig):
            return plan_store(config, shape)
        return DeviceStore.plan(shape)

    def prefill(
        self, layer: int, q_BHTD: Tensor, k_BGTD: Tensor, v_BGTD: Tensor, args: AttentionArgs
    ) -> Tensor:
        """Exact attention over the prompt so far."""
        self.store.append(layer, k_BGTD, v_BGTD)
        keys, values = self.store.keys(layer), self.store.values(layer)
        return causal(q_BHTD, keys, values, args, self.shape.pad_tokens)

    def seal(self) -> None:
        """Build the index of every layer, then move its keys and values where they shall live."""
        for layer in self.shape.layers:
            self.index.build(layer, self.store)
            self.store.offload(layer)

    def decode(
        self, layer: int, q_BHTD: Tensor, k_BGTD: Tensor, v_BGTD: Tensor, args: AttentionArgs
    ) -> Tensor:
        """select -> gather -> attend, reported to the probe."""
        self.store.append(layer, k_BGTD, v_BGTD)
        with self.probe.span("select"):
            self.index.append(layer, self.store)
            selection = self.index.select(layer, q_BHTD, self.store, args)
        with self.probe.span("gather"):
            k_BGRD, v_BGRD = self.store.gather(layer, selection.token_BGR)
        with self.probe.span("attend"):
            valid = selection.token_BGR >= 0
            out = attend(q_BHTD, k_BGRD, v_BGRD, valid, args, selection.estimate)
        if self.probe.detail:
            members = selection.members() if selection.members is not None else None
            self.probe.selected(layer, selection.token_BGR, selection.estimate, members)
        num_valid = int(valid.sum())
        heads = valid.shape[0] * valid.shape[1]
        self.probe.live(layer, attended=num_valid / heads, estimated=selection.estimated_tokens)
        token_bytes = 2 * self.shape.head_dim * DTYPE_BYTES[self.shape.dtype]
        self.probe.moved("kv", num_valid * token_bytes)
        self.probe.moved("index", selection.index_bytes)
        return out

    def step(self) -> None:
        """Report what moved between tiers in this step."""
        for moved in self.store.traffic():
            self.probe.access(moved.layer, moved.hits, moved.misses, moved.evictions)
            self.probe.moved("h2d", moved.h2d_bytes)

    def allocated(self) -> Footprint:
        """Bytes of index and store."""
        return self.store.footprint() + self.index.footprint()

    def close(self) -> None:
        """Free index and store."""
        self.store.close()
        self.index = _Closed()  # type: ignore[assignment]


class _Closed:
    """Index of a closed method: holds nothing."""

    def footprint(self) -> Footprint:
        return Footprint()


class StatelessIndex:
    """Base of indexes that keep nothing between steps."""

    def __init__(self, config: Any, shape: KVShape, budget: Budget | None) -> None:
        self.config = config
        self.shape = shape
        self.retrieved = retrieved_tokens(config, shape, budget)

    def build(self, layer: int, store: Store) -> None:
        """Nothing to build."""

    def append(self, layer: int, store: Store) -> None:
        """Nothing to add."""

    def footprint(self) -> Footprint:
        """No bytes."""
        return Footprint()


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
        if total <= static:
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
    score_BGS: Tensor, static_BS: Tensor, exists_BS: Tensor, retrieved: tuple[int, ...]
) -> Tensor:
    """Positions of the static zone and of the best-scored rest, ``token_BGR``, -1 padded."""
    free = exists_BS & ~static_BS
    score = score_BGS.masked_fill(~free[:, None], -torch.inf)
    most = min(max(retrieved), int(free.sum(-1).max()))
    value, token = score.topk(most, -1)
    rank = torch.arange(most, device=score.device)
    limit = torch.tensor(retrieved, device=score.device)[:, None, None]
    token = token.masked_fill((rank >= limit) | (value == -torch.inf), -1)
    num_static = int(static_BS.sum(-1).max())
    order = static_BS.int().sort(dim=-1, descending=True, stable=True)
    fixed = order.indices[:, :num_static].masked_fill(order.values[:, :num_static] == 0, -1)
    fixed = fixed[:, None].expand(-1, score.shape[1], -1)
    return torch.cat([fixed, token], -1)
