"""The wave index: clusters of keys with centroid, value sum and size (paper 4.2).

State is one tensor per kind, allocated at its final size, with views per layer and row. The index
knows clusters and where they are in the pool; keys and values themselves are in ``WaveBuffer``.
"""

from __future__ import annotations

import torch
from retrobench_kernels.cluster_layout import Layout, cluster_layout
from retrobench_kernels.segmented_kmeans import segmented_kmeans
from torch import Tensor

from retrobench.core.budget import Budget
from retrobench.core.shapes import DTYPE_BYTES, Footprint, KVShape
from retrobench_methods.retroinfer.adaptive import ErrorBound
from retrobench_methods.retroinfer.config import RetroInferConfig, capacity, sizes
from retrobench_methods.retroinfer.estimation import FourBit, Spread


class WaveIndex:
    """Which clusters there are, and how many of them a step retrieves and estimates."""

    def __init__(
        self, config: RetroInferConfig, shape: KVShape, budget: Budget | None, page_tokens: int
    ) -> None:
        self.config, self.shape, self.page_tokens = config, shape, page_tokens
        self.sizes = [
            sizes(config, shape.prompt_tokens - pad, budget, shape.kv_bytes_per_token)
            for pad in shape.pad_tokens
        ]
        self.capacity = capacity(config, shape)
        rows = (len(shape.layers), shape.batch)
        head = (*rows, shape.num_kv_heads)
        dtype, device = getattr(torch, shape.dtype), shape.device

        def zeros(*size: int, dtype: torch.dtype = torch.int32) -> Tensor:
            return torch.zeros(*size, dtype=dtype, device=device)

        self.centroid_LBGCD = zeros(*head, self.capacity, shape.head_dim, dtype=dtype)
        self.size_LBGC = zeros(*head, self.capacity)
        self.first_LBGC = zeros(*head, self.capacity)
        self.used_LBG = zeros(*head, dtype=torch.int64)  # pool positions in use
        self.num_clusters_LB, self.retrieved_LB, self.estimated_LB = (zeros(*rows) for _ in "123")
        self.value_sum_LBGCD: Tensor | None = None
        self.means: FourBit | None = None
        if config.int4_values:
            self.means = FourBit((*head, self.capacity), shape.head_dim, device)
        else:
            self.value_sum_LBGCD = torch.zeros_like(self.centroid_LBGCD)
        self.total_LBGD = zeros(*head, shape.head_dim * config.tail, dtype=torch.float32)
        self.spread = Spread(head, self.capacity, shape) if config.keeps_spread else None
        self.bound = ErrorBound(config.error_tolerance, shape) if config.error_tolerance else None
        # what the host must know without asking the device, per layer and row
        self.clusters = [[0] * shape.batch for _ in shape.layers]
        self.retrieved = [[0] * shape.batch for _ in shape.layers]
        self.estimated = [[0] * shape.batch for _ in shape.layers]

    @staticmethod
    def plan(config: RetroInferConfig, shape: KVShape) -> Footprint:
        """Bytes of the tensors above, before allocation."""
        rows = len(shape.layers) * shape.batch
        heads, clusters = rows * shape.num_kv_heads, capacity(config, shape)
        vector = shape.head_dim * DTYPE_BYTES[shape.dtype]
        value = FourBit.bytes_per_cluster(shape.head_dim) if config.int4_values else vector
        held = heads * (clusters * (vector + value + 2 * 4) + 8) + rows * 3 * 4
        held += heads * 4 * shape.head_dim * config.tail
        if config.keeps_spread:
            held += heads * Spread.bytes_per_head(clusters, shape)
        if config.error_tolerance:
            held += ErrorBound.plan_bytes(shape)
        return Footprint(device=held)

    def footprint(self) -> Footprint:
        """Bytes held."""
        held = [self.centroid_LBGCD, self.size_LBGC, self.first_LBGC, self.used_LBG]
        held += [self.num_clusters_LB, self.retrieved_LB, self.estimated_LB, self.total_LBGD]
        held += [] if self.value_sum_LBGCD is None else [self.value_sum_LBGCD]
        held += [] if self.means is None else [self.means.code, self.means.scale]
        held += [] if self.spread is None else self.spread.tensors()
        held += [] if self.bound is None else self.bound.tensors()
        return Footprint(device=sum(tensor.nbytes for tensor in held))

    def close(self) -> None:
        """Free everything."""
        empty = torch.empty(0)
        self.centroid_LBGCD, self.size_LBGC, self.first_LBGC, self.used_LBG = (empty,) * 4
        self.num_clusters_LB, self.retrieved_LB, self.estimated_LB = (empty,) * 3
        self.total_LBGD, self.value_sum_LBGCD, self.means, self.spread = empty, None, None, None
        self.bound = None

    def add_prompt(self, i: int, row: int, k_GSD: Tensor, v_GSD: Tensor) -> Layout:
        """Index the prompt of layer number ``i``; where each of its tokens goes in the pool."""
        want = self.sizes[row]
        clusters = min(want.clusters, k_GSD.shape[1])  # fewer tokens if prefill ended early
        layout = self._add(i, row, k_GSD, v_GSD, clusters, min(want.segments, clusters))
        self._count(i, row, clusters, want.retrieved, want.estimated)
        return layout

    def add_segment(self, i: int, row: int, k_GSD: Tensor, v_GSD: Tensor) -> Layout:
        """Index a segment of generated tokens."""
        want = self.sizes[row]
        layout = self._add(i, row, k_GSD, v_GSD, want.update_clusters, 1)
        more = want.retrieved_per_update, want.estimated_per_update
        self._count(i, row, want.update_clusters, *more)
        return layout

    def _add(
        self, i: int, row: int, k_GSD: Tensor, v_GSD: Tensor, clusters: int, segments: int
    ) -> Layout:
        begin = self.clusters[i][row]
        at = (i, row, slice(None), slice(begin, begin + clusters))
        assert begin + clusters <= self.capacity, "more clusters than planned"
        centroid, cluster = segmented_kmeans(
            k_GSD, clusters, segments, self.config.kmeans_iterations, self.config.final_assign
        )
        layout = cluster_layout(cluster, clusters, self.page_tokens)
        used_G1 = self.used_LBG[i, row][:, None]
        layout = layout._replace(
            target_GS=layout.target_GS + used_G1, first_GC=(layout.first_GC + used_G1).int()
        )
        self.centroid_LBGCD[at] = centroid.to(self.centroid_LBGCD.dtype)
        self.size_LBGC[at], self.first_LBGC[at] = layout.size_GC, layout.first_GC
        self.used_LBG[i, row] += layout.used_G
        value_sum = torch.zeros_like(centroid)
        value_sum.scatter_add_(1, cluster.long()[..., None].expand_as(v_GSD), v_GSD.float())
        if self.value_sum_LBGCD is not None:
            self.value_sum_LBGCD[at] = value_sum.to(self.value_sum_LBGCD.dtype)
        if self.means is not None:
            self.means.store(at, value_sum / layout.size_GC.clamp_min(1)[..., None])
        if self.config.tail:
            self.total_LBGD[i, row] += value_sum.sum(1)
        if self.spread is not None:
            self.spread.store(at, k_GSD, centroid, cluster.long(), layout.size_GC)
        if self.bound is not None:
            self.bound.store(i, row, v_GSD)
        return layout

    def _count(self, i: int, row: int, clusters: int, retrieved: int, estimated: int) -> None:
        self.clusters[i][row] += clusters
        self.retrieved[i][row] += retrieved
        self.estimated[i][row] += estimated
        self.num_clusters_LB[i, row] += clusters
        self.retrieved_LB[i, row] += retrieved
        self.estimated_LB[i, row] += estimated
