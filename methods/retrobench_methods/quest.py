"""Quest: pages ranked by an upper bound of their logits (arXiv 2406.10774)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from retrobench_kernels.page_bounds import page_extrema, upper_bound
from torch import Tensor

from retrobench.core.budget import Budget
from retrobench.core.method import AttentionArgs
from retrobench.core.shapes import DTYPE_BYTES, Footprint, KVShape
from retrobench.core.spec import option
from retrobench.engine.placement import DeviceStore, Store
from retrobench.engine.selective import Selection, SelectiveMethod, retrieved_tokens


@dataclass(frozen=True, kw_only=True)
class QuestConfig:
    """Defaults of mit-han-lab/Quest 01c1623; the shared budget stands in for its token budget."""

    page_size: int = option(16, "consecutive tokens per page", low=1, high=1024)
    retrieval_frac: float = option(
        0.018,
        "share of the context in selected pages, beside the newest page",
        above=0,
        high=1,
        hint="for a token count use budget=...tok",
    )
    scope: str = option(
        "kv_head",
        "kv_head: one page set per KV head (bounds summed over its query heads, ours: the "
        "released kernels know no GQA); query_head: one per query head (the accuracy path)",
        choices=("kv_head", "query_head"),
    )
    dense_layers: tuple[int, ...] = option(
        (0, 1), "layers that attend everything (paper: the first two)", low=0
    )
    sink_tokens: int = option(0, "first tokens, always attended (Quest: none)", low=0)
    local_tokens: int = option(1, "last tokens whose pages are always attended", low=1)


class PageIndex:
    """Minimum and maximum of the post-RoPE keys of every page, grown token by token."""

    def __init__(self, config: QuestConfig, shape: KVShape, budget: Budget | None) -> None:
        self.config, self.shape = config, shape
        self.retrieved = retrieved_tokens(config, shape, budget)
        self.slot = {layer: i for i, layer in enumerate(shape.layers)}
        self.pages = -(-shape.max_tokens // config.page_size)
        size = (len(shape.layers), shape.batch, shape.num_kv_heads, self.pages, shape.head_dim)
        dtype = getattr(torch, shape.dtype)
        self.low_LBGCD = torch.full(size, torch.inf, dtype=dtype, device=shape.device)
        self.high_LBGCD = torch.full(size, -torch.inf, dtype=dtype, device=shape.device)
        self.pad_B1 = torch.tensor(shape.pad_tokens, device=shape.device)[:, None]

    @staticmethod
    def plan(config: QuestConfig, shape: KVShape) -> Footprint:
        """Two vectors per page and KV head."""
        pages = -(-shape.max_tokens // config.page_size)
        heads = len(shape.layers) * shape.batch * shape.num_kv_heads
        return Footprint(device=2 * heads * pages * shape.head_dim * DTYPE_BYTES[shape.dtype])

    def footprint(self) -> Footprint:
        """Bytes held."""
        return Footprint(device=self.low_LBGCD.nbytes + self.high_LBGCD.nbytes)

    def build(self, layer: int, store: Store) -> None:
        """Extrema of all pages of the prompt; the last one may be partial."""
        pages = torch.arange(self.pages, device=self.pad_B1.device)
        self._update(layer, store, pages.expand(self.shape.batch, -1))

    def append(self, layer: int, store: Store) -> None:
        """Extrema of each row's newest page."""
        newest = store.keys(layer).shape[2] - 1 - self.pad_B1
        self._update(layer, store, newest // self.config.page_size)

    def _update(self, layer: int, store: Store, page_BK: Tensor) -> None:
        """Recompute pages. A row's pages begin at its first real token, whatever its padding."""
        i, keys = self.slot[layer], store.keys(layer)
        offset = torch.arange(self.config.page_size, device=keys.device)
        start_BK1 = self.pad_B1[:, :, None] + page_BK[..., None] * self.config.page_size
        position_BS = (start_BK1 + offset).flatten(1)
        valid = position_BS < keys.shape[2]
        row = torch.arange(self.shape.batch, device=keys.device)[:, None]
        paged_BGSD = keys.transpose(1, 2)[row, position_BS.clamp_max(keys.shape[2] - 1)]
        low, high = page_extrema(paged_BGSD.transpose(1, 2), self.config.page_size, valid)
        self.low_LBGCD[i].transpose(1, 2)[row, page_BK] = low.transpose(1, 2)
        self.high_LBGCD[i].transpose(1, 2)[row, page_BK] = high.transpose(1, 2)

    def select(self, layer: int, q_BHTD: Tensor, store: Store, args: AttentionArgs) -> Selection:
        """The newest page, static pages, and the best-bounded rest."""
        size, i, length = self.config.page_size, self.slot[layer], store.keys(layer).shape[2]
        context_B1 = length - self.pad_B1
        used = -(-length // size)
        page = torch.arange(used, device=q_BHTD.device)
        exists = page * size < context_B1
        static = exists & (
            (page * size < self.config.sink_tokens)
            | (page >= (context_B1 - self.config.local_tokens).clamp_min(0) // size)
        )
        if layer in self.config.dense_layers:
            heads = self.shape.num_kv_heads
            chosen = page.expand(self.shape.batch, heads, -1)
            return Selection(self._tokens(chosen.masked_fill(~exists[:, None], -1), length))
        low, high = self.low_LBGCD[i, :, :, :used], self.high_LBGCD[i, :, :, :used]
        # pages without tokens hold infinities, whose product with 0 would be NaN
        absent = ~exists[:, None, :, None]
        bound = upper_bound(
            q_BHTD[:, :, 0], low.masked_fill(absent, 0), high.masked_fill(absent, 0)
        )
        if self.config.scope == "kv_head":
            bound = bound.unflatten(1, (self.shape.num_kv_heads, -1)).sum(2)
        bound = bound.masked_fill(static[:, None], torch.inf)
        bound = bound.masked_fill(~exists[:, None], -torch.inf)
        want = torch.tensor([tokens // size for tokens in self.retrieved], device=page.device)
        limit_B11 = (want.clamp_min(1) + static.sum(-1))[:, None, None]
        # a stable sort: equal bounds go to the earlier page, so that runs repeat
        order = bound.sort(dim=-1, descending=True, stable=True)
        keep = (page < limit_B11) & (order.values > -torch.inf)
        most = min(used, int(limit_B11.max()))
        chosen = order.indices.masked_fill(~keep, -1)[..., :most]
        return Selection(self._tokens(chosen, length), index_bytes=low.nbytes + high.nbytes)

    def _tokens(self, page_BGK: Tensor, length: int) -> Tensor:
        """Positions of the tokens of pages (-1: none), ``token_BGR``."""
        offset = torch.arange(self.config.page_size, device=page_BGK.device)
        token = self.pad_B1[:, :, None, None] + page_BGK[..., None] * self.config.page_size
        token = token + offset
        absent = (page_BGK[..., None] < 0) | (token >= length)
        return token.masked_fill(absent, -1).flatten(2)


class Quest(SelectiveMethod):
    """Query-aware page selection; KV stays on the device."""

    name = "quest"
    Config = QuestConfig

    def make_index(self) -> PageIndex:
        """Page extrema."""
        return PageIndex(self.config, self.shape, self.budget)

    @classmethod
    def plan(cls, config: Any, shape: KVShape, budget: Budget | None = None) -> Footprint:
        """Store plus page extrema, after checking the budget."""
        retrieved_tokens(config, shape, budget)
        return DeviceStore.plan(shape) + PageIndex.plan(config, shape)
