"""The wave index: clusters of keys with centroid, value sum and size (paper 4.2).

State is one tensor per kind, allocated at its final size, with views per layer and row. Tokens
between ``indexed_end`` and the newest one belong to the steady zone until enough of them form a
new segment.
"""

from __future__ import annotations

import torch
from retrobench_kernels.segmented_kmeans import segmented_kmeans
from torch import Tensor

from retrobench.core.budget import Budget
from retrobench.core.method import AttentionArgs
from retrobench.core.shapes import DTYPE_BYTES, Footprint, KVShape
from retrobench.engine.attend import Estimate
from retrobench.engine.placement import Store
from retrobench.engine.selective import Selection
from retrobench_methods.retroinfer.config import (
    RetroInferConfig,
    capacity,
    num_indexed,
    sizes,
)


class WaveIndex:
    """Which clusters to attend exactly, which through estimates; the rest is ignored."""

    def __init__(self, config: RetroInferConfig, shape: KVShape, budget: Budget | None) -> None:
        self.config, self.shape = config, shape
        self.slot = {layer: i for i, layer in enumerate(shape.layers)}
        self.sizes = [
            sizes(config, shape.prompt_tokens - pad, budget, shape.kv_bytes_per_token)
            for pad in shape.pad_tokens
        ]
        layers, batch, groups = len(shape.layers), shape.batch, shape.num_kv_heads
        clusters = capacity(config, shape)
        head = (layers, batch, groups)
        dtype, device = getattr(torch, shape.dtype), shape.device
        self.centroid_LBGCD = torch.zeros(
            *head, clusters, shape.head_dim, dtype=dtype, device=device
        )
        self.value_sum_LBGCD = torch.zeros_like(self.centroid_LBGCD)
        self.size_LBGC = torch.zeros(*head, clusters, dtype=torch.int32, device=device)
        self.first_LBGC = torch.zeros_like(self.size_LBGC)  # start of a cluster in order_LBGS
        self.order_LBGS = torch.zeros(
            *head, shape.max_tokens, dtype=torch.int32, device=device
        )  # token positions in cluster order
        start = [pad + config.sink_tokens for pad in shape.pad_tokens]
        self.indexed_end = [list(start) for _ in range(layers)]
        self.clusters = [[0] * batch for _ in range(layers)]
        self.updates = [[0] * batch for _ in range(layers)]

    @staticmethod
    def plan(config: RetroInferConfig, shape: KVShape) -> Footprint:
        """Bytes of the tensors above, before allocation."""
        heads = len(shape.layers) * shape.batch * shape.num_kv_heads
        per_cluster = 2 * shape.head_dim * DTYPE_BYTES[shape.dtype] + 2 * 4
        tokens = shape.max_tokens * 4
        return Footprint(device=heads * (capacity(config, shape) * per_cluster + tokens))

    def footprint(self) -> Footprint:
        """Bytes held."""
        held = (self.centroid_LBGCD, self.value_sum_LBGCD, self.size_LBGC)
        held += (self.first_LBGC, self.order_LBGS)
        return Footprint(device=sum(tensor.nbytes for tensor in held))

    def build(self, layer: int, store: Store) -> None:
        """Cluster the prompt of a layer, row by row."""
        for row, pad in enumerate(self.shape.pad_tokens):
            covered = num_indexed(self.config, self.shape.prompt_tokens - pad)
            if covered:
                want = self.sizes[row]
                self._add(layer, row, store, covered, want.clusters, want.segments)

    def append(self, layer: int, store: Store) -> None:
        """Form a new segment once ``update_tokens`` have left the local window."""
        i = self.slot[layer]
        length = store.keys(layer).shape[2]
        for row in range(self.shape.batch):
            waiting = length - self.indexed_end[i][row] - self.config.local_tokens
            if waiting >= self.config.update_tokens:
                count = self.sizes[row].update_clusters
                self._add(layer, row, store, self.config.update_tokens, count, 1)
                self.updates[i][row] += 1

    def _add(
        self, layer: int, row: int, store: Store, num_tokens: int, clusters: int, segments: int
    ) -> None:
        i, start = self.slot[layer], self.indexed_end[self.slot[layer]][row]
        first_cluster = self.clusters[i][row]
        k_GSD = store.keys(layer)[row, :, start : start + num_tokens]
        v_GSD = store.values(layer)[row, :, start : start + num_tokens]
        centroid, cluster = segmented_kmeans(
            k_GSD, clusters, segments, self.config.kmeans_iterations, self.config.final_assign
        )
        target = slice(first_cluster, first_cluster + clusters)
        self.centroid_LBGCD[i, row, :, target] = centroid.to(self.centroid_LBGCD.dtype)
        value_sum = torch.zeros_like(centroid)
        spread = cluster[..., None].expand(-1, -1, v_GSD.shape[-1])
        value_sum.scatter_add_(1, spread, v_GSD.float())
        self.value_sum_LBGCD[i, row, :, target] = value_sum.to(self.value_sum_LBGCD.dtype)
        size = torch.zeros(centroid.shape[:2], dtype=torch.int64, device=centroid.device)
        size.scatter_add_(1, cluster, torch.ones_like(cluster))
        self.size_LBGC[i, row, :, target] = size.int()
        self.first_LBGC[i, row, :, target] = (size.cumsum(-1) - size + start).int()
        order = cluster.argsort(dim=-1, stable=True) + start
        self.order_LBGS[i, row, :, start : start + num_tokens] = order.int()
        self.indexed_end[i][row] = start + num_tokens
        self.clusters[i][row] = first_cluster + clusters

    def select(self, layer: int, q_BHTD: Tensor, store: Store, args: AttentionArgs) -> Selection:
        """Rank clusters once per KV head; best ones exact, next ones estimated.

        Ranking: softmax(q.C * scale) over clusters per query head, summed over the GQA group, not
        weighted by size (released code).
        """
        i, length = self.slot[layer], store.keys(layer).shape[2]
        steady = self._steady(i, length, q_BHTD.device)
        used = max(self.clusters[i])
        if used == 0:
            return Selection(steady)
        retrieved, estimated = self._counts(i)
        rank_BGK = self._rank(
            i, used, q_BHTD, args, max(map(sum, zip(retrieved, estimated, strict=True)))
        )
        rank = torch.arange(rank_BGK.shape[-1], device=rank_BGK.device)
        limit_B11 = torch.tensor(retrieved, device=rank.device)[:, None, None]
        limit_all = limit_B11 + torch.tensor(estimated, device=rank.device)[:, None, None]
        size_BGK = self.size_LBGC[i, :, :, :used].gather(-1, rank_BGK)
        exact_size = size_BGK * (rank < limit_B11)
        estimate_size = size_BGK * ((rank >= limit_B11) & (rank < limit_all))
        most = max(retrieved)
        token = self._tokens(i, rank_BGK[..., :most], exact_size[..., :most])
        selection = torch.cat([steady, token], -1)
        per_cluster = self.shape.head_dim * self.centroid_LBGCD.element_size()
        num_heads = rank_BGK.shape[0] * rank_BGK.shape[1]
        index_bytes = num_heads * used * per_cluster
        if max(estimated) == 0:
            return Selection(selection, index_bytes=index_bytes)
        # slots below every row's retrieval count hold no estimates
        keep = slice(min(retrieved), None)
        chosen = rank_BGK[..., keep]
        spread = chosen[..., None].expand(-1, -1, -1, self.shape.head_dim)
        estimate = Estimate(
            self.centroid_LBGCD[i, :, :, :used].gather(2, spread),
            self.value_sum_LBGCD[i, :, :, :used].gather(2, spread),
            estimate_size[..., keep],
        )
        tokens = float(estimate_size.sum()) / num_heads
        index_bytes += 2 * num_heads * max(estimated) * per_cluster
        return Selection(
            selection,
            estimate,
            tokens,
            index_bytes,
            members=lambda: self._tokens(i, chosen, estimate_size[..., keep]),
        )

    def _rank(self, i: int, used: int, q_BHTD: Tensor, args: AttentionArgs, most: int) -> Tensor:
        batch, heads, _, dim = q_BHTD.shape
        groups = self.shape.num_kv_heads
        q_BGND = q_BHTD.reshape(batch, groups, heads // groups, dim).float()
        centroid = self.centroid_LBGCD[i, :, :, :used].float()
        logit = q_BGND @ centroid.transpose(-1, -2) * args.scale
        empty = self.size_LBGC[i, :, :, None, :used] == 0
        logit = logit.masked_fill(empty, torch.finfo(torch.float32).min)
        score = logit.softmax(-1).sum(2).masked_fill(empty[:, :, 0], -1.0)
        return score.topk(min(most, used), -1).indices

    def _counts(self, i: int) -> tuple[list[int], list[int]]:
        retrieved, estimated = [], []
        for row, want in enumerate(self.sizes):
            updates = self.updates[i][row]
            retrieved.append(want.retrieved + updates * want.retrieved_per_update)
            estimated.append(want.estimated + updates * want.estimated_per_update)
        return retrieved, estimated

    def _steady(self, i: int, length: int, device: torch.device) -> Tensor:
        """Sinks and everything not yet indexed, ``token_BGR``, -1 padded."""
        rows = []
        for row, pad in enumerate(self.shape.pad_tokens):
            sink = torch.arange(pad, pad + self.config.sink_tokens, device=device)
            rest = torch.arange(self.indexed_end[i][row], length, device=device)
            rows.append(torch.cat([sink, rest]))
        most = max(len(row) for row in rows)
        padded = [torch.nn.functional.pad(row, (0, most - len(row)), value=-1) for row in rows]
        return torch.stack(padded)[:, None].expand(-1, self.shape.num_kv_heads, -1)

    def _tokens(self, i: int, cluster_BGK: Tensor, size_BGK: Tensor) -> Tensor:
        """Positions of all tokens of the chosen clusters, ``token_BGR``, -1 padded."""
        end = size_BGK.cumsum(-1)
        total = end[..., -1:]
        slot = torch.arange(int(total.max()), device=cluster_BGK.device)
        slot = slot.expand(*cluster_BGK.shape[:2], -1).contiguous()
        which = torch.searchsorted(end.contiguous(), slot, right=True)
        which = which.clamp_max(cluster_BGK.shape[-1] - 1)
        first = self.first_LBGC[i].gather(-1, cluster_BGK.gather(-1, which)).long()
        offset = slot - (end - size_BGK).gather(-1, which)
        position = (first + offset).clamp_max(self.order_LBGS.shape[-1] - 1)
        token = self.order_LBGS[i].gather(-1, position).long()
        return token.masked_fill(slot >= total, -1)
