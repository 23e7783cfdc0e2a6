"""Landmarks: the mean key of every chunk, and the chunks that their mean fits badly."""

import torch
from torch import Tensor

from retrobench.core.budget import Budget
from retrobench.core.method import AttentionArgs, PromptLayer
from retrobench.core.shapes import KVShape
from retrobench.engine.attention.index import Index
from retrobench.engine.attention.parts import logits
from retrobench.memory.selection import Tokens
from retrobench.memory.store import KVStore
from retrobench_methods.shadowkv.config import ShadowKVConfig, zones


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
