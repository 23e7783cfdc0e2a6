"""PQCache: tokens ranked by product-quantised keys, fetched through a block cache.

arXiv 2407.12820. Keys and values may live in host memory; codes and centroids are on the device.
"""

from collections.abc import Mapping
from typing import Any

import torch
from retrobench_kernels.segmented_kmeans import cluster_sums
from torch import Tensor

from retrobench.core.budget import Budget
from retrobench.core.method import AttentionArgs, PromptLayer
from retrobench.core.shapes import KVShape
from retrobench.engine.attention.index import Index
from retrobench.engine.attention.parts import softcapped
from retrobench.engine.attention.selective import SelectiveMethod
from retrobench.memory.pool import make_store
from retrobench.memory.selection import Tokens
from retrobench.memory.store import KVStore
from retrobench_methods.pqcache.config import PQCacheConfig, zones

_CHUNK_TOKENS = 4096


class QuantisedKeys(Index):
    """Codes of all keys and the centroids of every KV head; centroids stay as the prompt made them.

    A step looks the products of query and centroids up, token by token.
    """

    def __init__(self, config: PQCacheConfig, shape: KVShape, budget: Budget | None) -> None:
        super().__init__(config, shape, budget)
        self.lengths = [0] * len(shape.layers)
        self.zones = zones(config, shape, budget)
        self.trained = [  # prefilled tokens between sinks and window
            max(0, context - config.sink_tokens - max(recent, shape.tail_tokens))
            for context, (recent, _) in zip(shape.contexts, self.zones, strict=True)
        ]
        self.clusters = [max(1, min(2**config.bits, tokens)) for tokens in self.trained]
        parts, dim = config.subvectors, config.part_dim(shape.head_dim)
        head, device = (len(shape.layers), shape.batch, shape.num_kv_heads), shape.device
        self.code_LBGYS = torch.zeros(
            *head, parts, shape.max_tokens, dtype=torch.uint8, device=device
        )
        self.centroid_LBGYCD = torch.zeros(
            *head, parts, 2**config.bits, dim, dtype=getattr(torch, shape.dtype), device=device
        )
        self.pad_B1 = torch.tensor(shape.pad_tokens, device=device)[:, None]
        recent, retrieved = torch.tensor(self.zones, device=device).T
        self.recent_B1 = recent[:, None]
        self.total_B1 = (recent + retrieved)[:, None] + config.sink_tokens

    def build(self, layer: int, store: KVStore, prompt: PromptLayer) -> None:
        """Centroids from the tokens between sinks and window, codes for all."""
        i, length = self.slot[layer], prompt.k_BGSD.shape[2]
        self.lengths[i] = length
        for row, pad in enumerate(self.shape.pad_tokens):
            x_GYSD = self._parts(prompt.k_BGSD[row, :, pad:])
            first = self.config.sink_tokens
            middle, clusters = x_GYSD[:, :, first : first + self.trained[row]], self.clusters[row]
            if self.trained[row]:
                centroid = kmeans(middle.flatten(0, 1), clusters, self.config.iterations)
                self.centroid_LBGYCD[i, row, :, :, :clusters] = centroid.view(
                    *middle.shape[:2], clusters, -1
                )
            self.code_LBGYS[i, row, :, :, pad:length] = self._encode(i, row, x_GYSD)

    def append(self, layer: int, k_BGTD: Tensor) -> None:
        """The newest key's nearest centroids."""
        i = self.slot[layer]
        for row in range(self.shape.batch):
            code_GYT = self._encode(i, row, self._parts(k_BGTD[row]))
            self.code_LBGYS[i, row, :, :, self.lengths[i]] = code_GYT[..., 0]
        self.lengths[i] += 1

    def _parts(self, k_GSD: Tensor) -> Tensor:
        """Keys cut into sub-vectors, ``GYSD``."""
        return k_GSD.float().unflatten(-1, (self.config.subvectors, -1)).transpose(1, 2)

    def _encode(self, i: int, row: int, x_GYSD: Tensor) -> Tensor:
        centroid = self.centroid_LBGYCD[i, row, :, :, : self.clusters[row]].flatten(0, 1).float()
        return nearest(x_GYSD.flatten(0, 1), centroid).view(x_GYSD.shape[:3]).to(torch.uint8)

    def select(self, layer: int, q_BHTD: Tensor, store: KVStore, args: AttentionArgs) -> Tokens:
        """Sinks, window, and the best tokens between them by their codes, per KV head."""
        i = self.slot[layer]
        length, config = self.lengths[i], self.config
        position = torch.arange(length, device=q_BHTD.device)
        first_B1, last_B1 = self.pad_B1 + config.sink_tokens, length - self.recent_B1
        between_BS = (position >= first_B1) & (position < last_B1)
        weight_BGS = self.weights(i, q_BHTD, between_BS, args)
        weight_BGS = weight_BGS.masked_fill(~between_BS[:, None], torch.inf)
        weight_BGS = weight_BGS.masked_fill((position < self.pad_B1)[:, None], -torch.inf)
        most = min(length, max(sum(zone) for zone in self.zones) + config.sink_tokens)
        value, token_BGR = weight_BGS.topk(most, -1)
        rank = torch.arange(most, device=q_BHTD.device)
        missing = (rank >= self.total_B1)[:, None] | (value == -torch.inf)
        return Tokens(
            token_BGR=token_BGR.masked_fill(missing, -1), index_bytes=self.index_bytes(length)
        )

    def weights(self, i: int, q_BHTD: Tensor, real_BS: Tensor, args: AttentionArgs) -> Tensor:
        """Softmax weights of the real tokens by their codes, summed over the group: ``BGS``."""
        parts = self.config.subvectors
        q_BGNYD = q_BHTD[:, :, 0].float().unflatten(1, (self.shape.num_kv_heads, -1))
        q_BGYND = q_BGNYD.unflatten(-1, (parts, -1)).transpose(2, 3)
        product_BGYNC = q_BGYND @ self.centroid_LBGYCD[i].float().mT
        code_BGYS = self.code_LBGYS[i, ..., : self.lengths[i]].long()
        code_BGYNS = code_BGYS[:, :, :, None].expand(-1, -1, -1, product_BGYNC.shape[3], -1)
        logit_BGNS = softcapped(product_BGYNC.gather(-1, code_BGYNS).sum(2) * args.scale, args)
        logit_BGNS = logit_BGNS.masked_fill(~real_BS[:, None, None], -torch.inf)
        return logit_BGNS.softmax(-1).nan_to_num(0.0).sum(2)

    def index_bytes(self, length: int) -> int:
        """Codes of the tokens that compete, one byte each, and all centroids."""
        static = [self.config.sink_tokens + recent for recent, _ in self.zones]
        pairs = zip(self.shape.pad_tokens, static, strict=True)
        codes = sum(max(0, length - pad - fixed) for pad, fixed in pairs)
        codes = codes * self.shape.num_kv_heads * self.config.subvectors
        return codes + self.centroid_LBGYCD[0].nbytes


def kmeans(x_NSD: Tensor, clusters: int, iterations: int) -> Tensor:
    """Euclidean k-means of N independent sets, from evenly spaced points: centroids ``NCD``."""
    spaced = torch.linspace(0, x_NSD.shape[1] - 1, clusters, device=x_NSD.device).long()
    centroid = x_NSD[:, spaced]
    for _ in range(iterations):
        label_NS = nearest(x_NSD, centroid)
        total, size = cluster_sums(x_NSD, torch.zeros_like(x_NSD[:, 0]), label_NS, clusters)
        empty = size[..., None] == 0
        centroid = torch.where(empty, centroid, total / size.clamp_min(1)[..., None])
    return centroid


def nearest(x_NSD: Tensor, centroid_NCD: Tensor) -> Tensor:
    """Number of the nearest centroid of each point, ``NS``; in bounded memory."""
    half_N1C = centroid_NCD.square().sum(-1)[:, None] / 2
    parts = [
        (part @ centroid_NCD.mT - half_N1C).argmax(-1) for part in x_NSD.split(_CHUNK_TOKENS, 1)
    ]
    return torch.cat(parts, 1)


class PQCache(SelectiveMethod):
    """Sinks, a recent window, and the best tokens between them by quantised keys."""

    name = "pqcache"
    index_class = QuantisedKeys
    memory_knob = "cache_frac"
    Config = PQCacheConfig
    index: QuantisedKeys

    def make_store(self) -> KVStore:
        """Missed tokens are fetched one by one; the blocks asked most enter the cache."""
        return make_store(self.config, self.shape, by_token=True)

    def stats(self) -> Mapping[str, Any]:
        """Tokens of the first row's window, and retrieved ones."""
        recent, retrieved = self.index.zones[0]
        return {"recent_tokens": recent, "retrieved_tokens": retrieved}
