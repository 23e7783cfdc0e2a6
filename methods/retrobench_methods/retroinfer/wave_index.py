"""The wave index: clusters of keys with centroid, value sum and size (paper 4.2).

State is one tensor per kind, allocated at its final size, with views per layer and row. The index
knows clusters and where they are in the pool; keys and values themselves are in ``WaveBuffer``.
"""

from dataclasses import replace

import torch
from retrobench_kernels.cluster_layout import Layout, cluster_layout
from retrobench_kernels.cluster_select import SelectArgs, cluster_select
from retrobench_kernels.segmented_kmeans import segmented_kmeans
from retrobench_kernels.wave_attention import Estimation
from torch import Tensor

from retrobench.core.budget import Budget
from retrobench.core.method import AttentionArgs
from retrobench.core.shapes import Footprint, KVShape
from retrobench.engine.attention.index import Index
from retrobench.memory.selection import listed
from retrobench_methods.retroinfer.adaptive import ErrorBound
from retrobench_methods.retroinfer.config import RetroInferConfig, Sizes, capacity, sizes
from retrobench_methods.retroinfer.estimation import Int4Values, KeyCovariance, estimate_all
from retrobench_methods.retroinfer.mass import steady_lse, until_enough
from retrobench_methods.retroinfer.selection import ClusterSelection
from retrobench_methods.retroinfer.vectors import ClusterVectors, vector_sums
from retrobench_methods.retroinfer.wave_buffer import WaveBuffer


class WaveIndex(Index):
    """Which clusters there are, and which of them a step retrieves and estimates."""

    def __init__(
        self, config: RetroInferConfig, shape: KVShape, budget: Budget | None, page_tokens: int = 1
    ) -> None:
        super().__init__(config, shape, budget)
        self.page_tokens, self.static = page_tokens, False
        self.sizes = [  # of each row: its prompt, and a segment of generated tokens
            sizes(config, context, budget, shape.kv_bytes_per_token) for context in shape.contexts
        ]
        self.capacity = capacity(config, shape)
        rows = (len(shape.layers), shape.batch)
        head = (*rows, shape.num_kv_heads)
        device = shape.device

        def zeros(*size: int, dtype: torch.dtype = torch.int32) -> Tensor:
            return torch.zeros(*size, dtype=dtype, device=device)

        self.centroids = ClusterVectors(config.index_codec, head, self.capacity, shape, scored=True)
        self.size_LBGC = zeros(*head, self.capacity)
        self.first_LBGC = zeros(*head, self.capacity)
        # with a cache: each cluster's first page, and pages in use
        self.page_LBGC = zeros(*head, self.capacity * (page_tokens > 1))
        self.pages_LBG = zeros(*head, dtype=torch.int64)
        self.num_clusters_LB, self.retrieved_LB, self.estimated_LB = (zeros(*rows) for _ in "123")
        self.token_limit_LB = zeros(*rows)  # of retrieved clusters, if they count for their tokens
        self.values: ClusterVectors | None = None  # sums, or means where they are coded
        self.means: Int4Values | None = None
        if config.int4_values:
            self.means = Int4Values((*head, self.capacity), shape.head_dim, device)
        else:
            self.values = ClusterVectors(config.index_codec, head, self.capacity, shape)
        self.total_LBGD = zeros(*head, shape.head_dim * config.tail, dtype=torch.float32)
        self.spread: KeyCovariance | None = None
        if config.keeps_covariance:
            self.spread = KeyCovariance(head, self.capacity, shape)
        self.bound = ErrorBound(config.error_tolerance, shape) if config.error_tolerance else None
        # what the host must know without asking the device, per layer and row
        self.clusters = [[0] * shape.batch for _ in shape.layers]
        self.placed = [[0] * shape.batch for _ in shape.layers]  # tokens in the pool
        self.retrieved = [[0] * shape.batch for _ in shape.layers]
        self.estimated = [[0] * shape.batch for _ in shape.layers]

    @classmethod
    def plan(
        cls,
        config: RetroInferConfig,
        shape: KVShape,
        budget: Budget | None = None,
        page_tokens: int = 1,
    ) -> Footprint:
        """As every index: the bytes of one on the meta device."""
        return cls(config, replace(shape, device="meta"), budget, page_tokens).footprint()

    def select(
        self, layer: int, q_BHTD: Tensor, store: WaveBuffer, args: AttentionArgs
    ) -> ClusterSelection:
        """Clusters to retrieve and to estimate, and what the options add to the estimate."""
        i, q_BHD = self.slot[layer], q_BHTD[:, :, 0].contiguous()
        retrieved, estimated, logit = self._rank(i, q_BHD, args)
        estimation, partials = None, ()
        if retrieved.shape[-1]:
            if self.spread is not None and self.config.second_order:
                logit = logit + self.spread.correction(i, q_BHD, self.size_LBGC[i], args.scale)
            if self.reads_steady:
                steady_BH = steady_lse(i, q_BHD, store, args)
                lists = retrieved, estimated, logit
                retrieved, estimated = self._adapt(i, *lists, q_BHD, steady_BH, args.scale)
            if self.values is not None and (estimated.shape[-1] or self.config.tail):
                total = self.total_LBGD[i] if self.config.tail else None
                estimation = Estimation(estimated, logit, self.values.read(i), total)
            if self.means is not None:
                left_BGC = self.size_LBGC[i] * ~listed(retrieved, self.capacity)
                partials = (estimate_all(logit, left_BGC, self.means.read(i)),)
        return ClusterSelection(
            first_BGC=self.first_LBGC[i],
            page_BGC=self.page_LBGC[i] if self.page_tokens > 1 else None,
            size_BGC=self.size_LBGC[i],
            chosen_BGN=retrieved,
            estimated_BGE=estimated,
            logit_BHC=logit,
            estimation=estimation,
            partials=partials,
        )

    def _rank(self, i: int, q_BHD: Tensor, args: AttentionArgs) -> tuple[Tensor, Tensor, Tensor]:
        """Best clusters by their centroids: retrieved, estimated (-1 padded) and all logits.

        Lists are as wide as this step needs, or as any step may need where widths must not change.
        """
        shape = self.shape
        if not self.static and not any(self.clusters[i]):
            none = q_BHD.new_empty(shape.batch, shape.num_kv_heads, 0, dtype=torch.int32)
            return none, none, q_BHD.new_empty(*q_BHD.shape[:2], 0)
        return cluster_select(*self.select_args(i, q_BHD, args))

    def select_args(self, i: int, q_BHD: Tensor, args: AttentionArgs) -> SelectArgs:
        """What ranks a layer's clusters, of which there are some."""
        whole = self.config.int4_values  # all are estimated, none is chosen for it
        widths = self._widths(i, self.capacity if self.static else max(self.clusters[i]))
        return SelectArgs(
            q_BHD,
            self.centroids.read_scored(i),
            self.size_LBGC[i],
            self.num_clusters_LB[i],
            self.retrieved_LB[i],
            torch.zeros_like(self.estimated_LB[i]) if whole else self.estimated_LB[i],
            args.scale,
            max_retrieved=widths[0],
            max_estimated=0 if whole else widths[1],
            softcap=args.softcap or 0.0,
            token_limit_B=self.token_limit_LB[i] if self.config.weigh_sizes else None,
            bias_BGC=self.gain(i),
        )

    def _widths(self, i: int, clusters: int) -> tuple[int, int]:
        """Width of the retrieved and of the estimated list."""
        if not self.static:
            found = max(self.retrieved[i]), max(self.estimated[i])
        else:
            found = self._widest("retrieved"), self._widest("estimated")
        return min(clusters, found[0]), min(clusters, found[1])

    def _widest(self, kind: str) -> int:
        """The widest row's list after every update that may still come."""
        widest = 0
        for used, counts in zip(self.clusters, getattr(self, kind), strict=True):
            for clusters, count, (_, segment) in zip(used, counts, self.sizes, strict=True):
                updates = (self.capacity - clusters) // segment.clusters
                widest = max(widest, count + updates * getattr(segment, kind))
        return widest

    @property
    def reads_steady(self) -> bool:
        """Whether choosing needs the weights of the steady zone."""
        return self.bound is not None or self.top_p is not None

    def _adapt(
        self,
        i: int,
        retrieved_BGR: Tensor,
        estimated_BGE: Tensor,
        logit_BHC: Tensor,
        q_BHD: Tensor,
        steady_BH: Tensor,
        scale: float,
    ) -> tuple[Tensor, Tensor]:
        """Estimate those retrieved clusters whose estimate is good enough for this query."""
        weights, whole = (logit_BHC, self.size_LBGC[i]), self.config.int4_values
        if self.top_p is not None:
            share = self.config.estimation_frac * (not whole)
            estimated_B = (share * self.num_clusters_LB[i]).round()
            return until_enough(
                retrieved_BGR, estimated_BGE, *weights, steady_BH, self.top_p, estimated_B,
                weigh_sizes=self.config.weigh_sizes,
            )  # fmt: skip
        assert self.bound is not None and self.spread is not None
        variance = self.spread.variance(i, q_BHD, scale)
        retrieved, left = self.bound.keep(i, retrieved_BGR, *weights, variance, steady_BH)
        # with `whole`, whatever is not retrieved is estimated
        return retrieved, estimated_BGE if whole else torch.cat([estimated_BGE, left], -1)

    def estimated_tokens(self, i: int, selection: ClusterSelection) -> Tensor:
        """Tokens that estimates stand for, mean per row and KV head."""
        heads = self.shape.batch * self.shape.num_kv_heads
        if self.config.int4_values:
            return (self.size_LBGC[i].sum() - selection.num_tokens) / heads
        return replace(selection, chosen_BGN=selection.estimated_BGE).num_tokens / heads

    def index_bytes(self, i: int, selection: ClusterSelection) -> Tensor:
        """Centroids and sizes of all clusters, value sums of estimated ones; extras if asked."""
        shape, config = self.shape, self.config
        heads = shape.batch * shape.num_kv_heads
        clusters = self.num_clusters_LB[i].sum() * shape.num_kv_heads  # of all rows and heads
        gains = 2 * clusters if self.gain(i) is not None else 0
        num_bytes = 4 * clusters + gains + self.centroids.bytes_read(clusters, heads)
        if self.values is None:
            num_bytes = num_bytes + clusters * (shape.head_dim // 2 + 2)
        else:
            read = (selection.estimated_BGE >= 0).sum()
            if config.tail:  # the total, and what was retrieved is taken from it
                read = read + (selection.chosen_BGN >= 0).sum()
                num_bytes = num_bytes + heads * 4 * shape.head_dim
            num_bytes = num_bytes + self.values.bytes_read(read, heads)
        if config.keeps_covariance:
            num_bytes = num_bytes + 2 * clusters + heads * 4 * shape.head_dim**2
        return num_bytes

    def add_prompt(self, i: int, row: int, k_GSD: Tensor, v_GSD: Tensor) -> Layout:
        """Index the prompt of layer number ``i``; where each of its tokens goes in the pool."""
        expected = self.sizes[row][0]
        clusters = min(expected.clusters, k_GSD.shape[1])  # fewer tokens if prefill ended early
        segments = min(expected.segments, clusters)
        added = replace(expected, clusters=clusters, segments=segments)
        return self._add(i, row, k_GSD, v_GSD, added)

    def add_segment(self, i: int, row: int, k_GSD: Tensor, v_GSD: Tensor) -> Layout:
        """Index a segment of generated tokens."""
        return self._add(i, row, k_GSD, v_GSD, self.sizes[row][1])

    def _add(self, i: int, row: int, k_GSD: Tensor, v_GSD: Tensor, added: Sizes) -> Layout:
        begin, clusters = self.clusters[i][row], added.clusters
        at = (i, row, slice(None), slice(begin, begin + clusters))
        assert begin + clusters <= self.capacity, "more clusters than planned"
        centroid, cluster = self.cluster(i, row, k_GSD, v_GSD, clusters, added.segments)
        self.note(at, k_GSD, v_GSD, centroid, cluster)
        layout = cluster_layout(cluster, clusters, self.page_tokens, self.placed[i][row])
        exists_GC = layout.size_GC > 0
        self.centroids.store(at, centroid, exists_GC)
        self.size_LBGC[at], self.first_LBGC[at] = layout.size_GC, layout.first_GC
        self.placed[i][row] += k_GSD.shape[1]
        if self.page_tokens > 1:
            used_G1 = self.pages_LBG[i, row][:, None]
            self.page_LBGC[at] = (layout.page_GC + used_G1).int()
            self.pages_LBG[i, row] += layout.pages_G
        value_sum = vector_sums(v_GSD, cluster, clusters)
        mean = value_sum / layout.size_GC.clamp_min(1)[..., None]
        if self.values is not None:
            self.values.store(at, mean if self.values.coded else value_sum, exists_GC)
        if self.means is not None:
            self.means.store(at, mean)
        if self.config.tail:
            self.total_LBGD[i, row] += value_sum.sum(1)
        if self.spread is not None:
            self.spread.store(at, k_GSD, centroid, cluster.long(), layout.size_GC)
        if self.bound is not None:
            self.bound.store(i, row, v_GSD)
        self._count(i, row, added)
        return layout

    def note(
        self, at: tuple, k_GSD: Tensor, v_GSD: Tensor, centroid_GCD: Tensor, cluster_GS: Tensor
    ) -> None:
        """For indexes that keep more of new clusters; ``at`` is (layer, row, heads, clusters)."""

    def gain(self, i: int) -> Tensor | None:
        """What is added to the logits of a layer's clusters, ``BGC``."""
        return None

    def cluster(
        self, i: int, row: int, k_GSD: Tensor, v_GSD: Tensor, clusters: int, segments: int
    ) -> tuple[Tensor, Tensor]:
        """Float32 centroids ``GCD`` of new tokens and the cluster of each, ``GS``."""
        config = self.config
        return segmented_kmeans(
            k_GSD, clusters, segments, config.kmeans_iterations, config.final_assign,
            config.kmeans_init, config.segment_edges,
        )  # fmt: skip

    def _count(self, i: int, row: int, added: Sizes) -> None:
        self.clusters[i][row] += added.clusters
        self.retrieved[i][row] += added.retrieved
        self.estimated[i][row] += added.estimated
        self.num_clusters_LB[i, row] += added.clusters
        self.retrieved_LB[i, row] += added.retrieved
        self.estimated_LB[i, row] += added.estimated
        self.token_limit_LB[i, row] += added.retrieved_tokens
