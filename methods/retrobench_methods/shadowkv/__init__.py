"""ShadowKV: chunks by their landmark, keys rebuilt from a low-rank product, values offloaded.

arXiv 2410.21465. The keys are factored before their rotation, where they are of low rank.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from retrobench.core.budget import Budget
from retrobench.core.method import AttentionArgs, Needs, PromptLayer
from retrobench.core.shapes import Footprint, KVShape
from retrobench.engine.attention.index import Index
from retrobench.engine.attention.parts import logits
from retrobench.engine.attention.selective import SelectiveMethod
from retrobench.memory.selection import Selection, Tokens
from retrobench.memory.store import KVStore
from retrobench_methods.shadowkv.config import ShadowKVConfig, zones
from retrobench_methods.shadowkv.low_rank import LowRankStore


class Landmarks(Index):
    """Means of the rotated keys of a chunk; a row's chunks begin at its first real token."""

    def __init__(self, config: ShadowKVConfig, shape: KVShape, budget: Budget | None) -> None:
        super().__init__(config, shape, budget)
        self.zones = zones(config, shape, budget)
        head, device = (len(shape.layers), shape.batch, shape.num_kv_heads), shape.device
        chunks = max(zone.chunks for zone in self.zones)
        dtype = getattr(torch, shape.dtype)
        self.mean_LBGCD = torch.zeros(*head, chunks, shape.head_dim, dtype=dtype, device=device)
        self.ranked_LBGC = torch.zeros(*head, chunks, dtype=torch.bool, device=device)
        outliers = max(zone.outliers for zone in self.zones)
        self.outlier_LBGK = torch.full((*head, outliers), -1, device=device)
        self.pad_B = torch.tensor(shape.pad_tokens, device=device)
        self.chunks_B = torch.tensor([zone.chunks for zone in self.zones], device=device)
        self.selected_B = torch.tensor([zone.selected for zone in self.zones], device=device)

    def build(self, layer: int, store: KVStore, prompt: PromptLayer) -> None:
        """Landmarks of every chunk; outliers are those with a token farthest in angle."""
        i, size = self.slot[layer], self.config.chunk_tokens
        for row, zone in enumerate(self.zones):
            pad = self.shape.pad_tokens[row]
            keys = prompt.k_BGSD[row, :, pad : pad + zone.chunks * size].float()
            chunk_GCSD = keys.unflatten(1, (zone.chunks, size))
            mean_GCD = chunk_GCSD.mean(2)
            self.mean_LBGCD[i, row, :, : zone.chunks] = mean_GCD
            fit_GC = torch.cosine_similarity(chunk_GCSD, mean_GCD[:, :, None], -1).amin(-1)
            outlier_GK = fit_GC.topk(zone.outliers, -1, largest=False).indices
            self.outlier_LBGK[i, row, :, : zone.outliers] = outlier_GK
            self.ranked_LBGC[i, row, :, : zone.chunks] = True
            self.ranked_LBGC[i, row].scatter_(-1, outlier_GK, False)

    def select(self, layer: int, q_BHTD: Tensor, store: KVStore, args: AttentionArgs) -> Tokens:
        """Outliers, the chunks with the heaviest landmarks per KV head, and the exact tail."""
        i, length = self.slot[layer], store.length(layer)
        chunk_BGK = torch.cat([self.outlier_LBGK[i], self.heaviest(i, q_BHTD, args)], -1)
        size = self.config.chunk_tokens
        within = torch.arange(size, device=chunk_BGK.device)
        token = self.pad_B[:, None, None, None] + chunk_BGK[..., None] * size + within
        token_BGR = token.masked_fill(chunk_BGK[..., None] < 0, -1).flatten(2)
        first_B1 = (self.pad_B + self.chunks_B * size)[:, None]
        longest = max(zone.tail for zone in self.zones) + length - self.shape.prompt_tokens
        tail_BR = first_B1 + torch.arange(longest, device=within.device)
        tail_B1R = tail_BR.masked_fill(tail_BR >= length, -1)[:, None]
        token_BGR = torch.cat([token_BGR, tail_B1R.expand(-1, token_BGR.shape[1], -1)], -1)
        return Tokens(token_BGR=token_BGR, index_bytes=self.index_bytes())

    def heaviest(self, i: int, q_BHTD: Tensor, args: AttentionArgs) -> Tensor:
        """Chunks with the largest softmax weight of any query head, ``BGK``, -1 padded."""
        q_BGND = q_BHTD[:, :, 0].unflatten(1, (self.shape.num_kv_heads, -1))
        logit_BGNC = logits(q_BGND, self.mean_LBGCD[i], args)
        logit_BGNC = logit_BGNC.masked_fill(~self.ranked_LBGC[i][:, :, None], -torch.inf)
        weight_BGC = logit_BGNC.softmax(-1).amax(2).masked_fill(~self.ranked_LBGC[i], -1)
        most = max(zone.selected for zone in self.zones)
        weight, chunk_BGK = weight_BGC.topk(most, -1)
        rank = torch.arange(most, device=chunk_BGK.device)
        return chunk_BGK.masked_fill((rank >= self.selected_B[:, None, None]) | (weight < 0), -1)

    def index_bytes(self) -> int:
        """Landmarks of chunks that are no outliers."""
        ranked = sum(zone.chunks - zone.outliers for zone in self.zones)
        return ranked * self.shape.num_kv_heads * self.shape.head_dim * self.shape.value_bytes


class ShadowKV(SelectiveMethod):
    """Outliers, heaviest chunks and the newest tokens."""

    name = "shadowkv"
    index_class = Landmarks
    Config = ShadowKVConfig
    needs = Needs(prompt_rotary=True)
    index: Landmarks
    store: LowRankStore

    def setup(self) -> None:
        """Also count what is fetched."""
        super().setup()
        self.fetched: float | Tensor = 0.0
        self.steps = 0  # of all layers

    def make_store(self) -> LowRankStore:
        """Low-rank keys, values elsewhere."""
        return LowRankStore(self.config, self.shape, self.index.zones)

    @classmethod
    def plan(cls, config: Any, shape: KVShape, budget: Budget | None = None) -> Footprint:
        """Store and landmarks, after checking the budget."""
        store = LowRankStore.plan(config, shape, zones(config, shape, budget))
        return store + Landmarks.plan(config, shape, budget)

    def build(self, layer: int, prompt: PromptLayer) -> None:
        """Fill the store and the index, then keep the outliers exactly."""
        super().build(layer, prompt)
        self.store.keep(layer, prompt, self.index.outlier_LBGK[self.index.slot[layer]])

    def count(
        self, layer: int, tokens: int | Tensor, heads: int, selection: Selection, **more: Any
    ) -> None:
        """Keys of fetched chunks are read as factors; their values come over the bus."""
        super().count(layer, tokens, heads, selection, **more)
        shape, rank = self.shape, self.store.rank
        fetched = self.store.fetched[self.index.slot[layer]].clone()
        elements = shape.batch * shape.num_kv_heads * rank * shape.head_dim
        rebuilt = fetched * (rank - shape.head_dim) + elements * (fetched > 0)
        offloaded = fetched * shape.head_dim * (self.store.place != "gpu")
        size = shape.value_bytes
        self.probe.count(layer, kv=size * rebuilt, h2d=size * offloaded)
        self.fetched, self.steps = self.fetched + fetched, self.steps + 1

    def stats(self) -> Mapping[str, Any]:
        """Rank, how much of the keys it holds, share of chunks reused, the first row's chunks."""
        kept, zone = self.store.kept, self.index.zones[0]
        size = self.config.chunk_tokens * self.shape.num_kv_heads
        asked = self.steps * size * sum(zone.selected for zone in self.index.zones)
        return {
            "reused_frac": 1 - float(self.fetched) / asked if asked else 0.0,
            "rank": self.store.rank,
            "kept_norm": sum(kept) / len(kept) if kept else 1.0,  # squared
            "outlier_chunks": zone.outliers,
            "selected_chunks": zone.selected,
        }
