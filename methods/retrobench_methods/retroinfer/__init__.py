"""RetroInfer: KV cache as a vector store (arXiv 2505.02922v3, PVLDB 19(5)).

``WaveIndex`` says which clusters matter, ``WaveBuffer`` where their keys and values are, and this
module runs a layer's step: append, select, look up, attend in one pass, admit.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from retrobench_kernels.cluster_select import cluster_select
from retrobench_kernels.dense_decode import dense_decode
from retrobench_kernels.wave_attention import Estimation, Pool, wave_attention
from retrobench_kernels.wave_step import CacheTable, wave_step
from torch import Tensor

from retrobench.core.budget import Budget
from retrobench.core.method import AttentionArgs, Method, NullProbe, Probe
from retrobench.core.shapes import Footprint, KVShape
from retrobench.engine.attention.math import causal, merge
from retrobench_methods.retroinfer import estimation as estimate
from retrobench_methods.retroinfer.ahead import CacheWorker
from retrobench_methods.retroinfer.config import RetroInferConfig, num_indexed, sizes, tiers_of
from retrobench_methods.retroinfer.wave_buffer import WaveBuffer, cluster_pages, page_tokens
from retrobench_methods.retroinfer.wave_index import WaveIndex
from retrobench_methods.retroinfer.zones import Positions, Zones, report


class RetroInfer(Method):
    """Tripartite attention over a wave index: steady and retrieved exactly, estimated, ignored."""

    name = "retroinfer"
    memory_knob = "cache_frac"
    Config = RetroInferConfig

    def __init__(
        self,
        config: Any,
        shape: KVShape,
        probe: Probe | None = None,
        budget: Budget | None = None,
    ) -> None:
        super().__init__(config, shape, probe, budget)
        tiers = tiers_of(config, shape)
        self.number = {layer: i for i, layer in enumerate(shape.layers)}
        self.index = WaveIndex(config, shape, budget, page_tokens(tiers))
        self.buffer = WaveBuffer(config, shape, tiers)
        self.positions = Positions(self.buffer) if self.probe.detail else None
        self.worker: CacheWorker | None = None
        if config.overlap or config.prefetch_frac:
            assert self.buffer.cache is not None
            self.worker = CacheWorker(self.buffer.cache, shape.device)
        self.updates = 0

    @classmethod
    def plan(cls, config: Any, shape: KVShape, budget: Budget | None = None) -> Footprint:
        """Pool, steady zone, cache and wave index, after checking budget and options."""
        tiers = tiers_of(config, shape)
        for pad in shape.pad_tokens:
            sizes(config, shape.prompt_tokens - pad, budget, shape.kv_bytes_per_token)
        return WaveBuffer.plan(config, shape, tiers) + WaveIndex.plan(config, shape)

    def prefill(
        self, layer: int, q_BHTD: Tensor, k_BGTD: Tensor, v_BGTD: Tensor, args: AttentionArgs
    ) -> Tensor:
        """Exact attention over the prompt so far."""
        keys, values = self.buffer.append_prompt(self.number[layer], k_BGTD, v_BGTD)
        return causal(q_BHTD, keys, values, args, self.shape.pad_tokens)

    def seal(self) -> None:
        """Layer by layer: cluster, arrange in cluster order, let go of the original order."""
        for i in range(len(self.shape.layers)):
            for row, pad in enumerate(self.shape.pad_tokens):
                covered = 0
                if self.index.sizes[row].clusters:
                    covered = num_indexed(self.config, self.buffer.length[i] - pad)
                k_GSD, v_GSD = self.buffer.settle(i, row, covered)
                if covered:
                    layout = self.index.add_prompt(i, row, k_GSD, v_GSD)
                    self.buffer.place(i, row, k_GSD, v_GSD, layout)
                    if self.positions is not None:
                        start = pad + self.config.sink_tokens
                        self.positions.place(i, row, start, layout.target_GS)
            self.buffer.release_prompt(i)

    def decode(
        self, layer: int, q_BHTD: Tensor, k_BGTD: Tensor, v_BGTD: Tensor, args: AttentionArgs
    ) -> Tensor:
        """Append, update the index if due, and attend the three zones in one pass."""
        i = self.number[layer]
        if self.worker is not None:
            self.worker.finish(layer)  # it reads pool and index
        self.buffer.append(i, k_BGTD, v_BGTD)
        self.update(i)
        q_BHD = q_BHTD[:, :, 0].contiguous()
        pool = self.buffer.pool(i, self.index.first_LBGC[i], self.index.size_LBGC[i])
        with self.probe.span("select"):
            zones = self.select(i, q_BHD, pool, args)
        cache, pages = self.buffer.cache, None
        if cache is not None and zones.has_clusters:
            with self.probe.span("lookup"):
                pages = cluster_pages(pool, zones.retrieved_BGR, self.buffer.page_tokens)
                cache.lookup(layer, *pages)
        with self.probe.span("attend"):
            out_BHD = self.attend(i, q_BHD, pool, zones, args, pages=pages)
        if cache is not None and zones.has_clusters:
            with self.probe.span("admit"):
                if not self.config.overlap:
                    cache.admit(layer, pool.k_BGSD, pool.v_BGSD)
                if self.config.prefetch_frac:
                    assert self.worker is not None
                    count = math.ceil(self.config.prefetch_frac * max(self.index.retrieved[i]))
                    self.worker.prefetch(layer, zones, pool, count)
        if not isinstance(self.probe, NullProbe):
            report(self.probe, layer, self.index, self.buffer, zones)
        if self.positions is not None:
            self.positions.report(self.probe, layer, self.index, pool, zones)
        return out_BHD[:, :, None]

    def select(
        self,
        i: int,
        q_BHD: Tensor,
        pool: Pool,
        args: AttentionArgs,
        widths: tuple[int, int] | None = None,
    ) -> Zones:
        """Clusters to retrieve and to estimate; ``widths`` of the two lists where they must not
        change from step to step (a captured graph), else as wide as this step needs.
        """
        index, batch = self.index, self.shape.batch
        clusters = max(index.clusters[i])
        if clusters == 0:
            none = q_BHD.new_empty(batch, self.shape.num_kv_heads, 0, dtype=torch.int32)
            return Zones(i, none, none, q_BHD.new_empty(*q_BHD.shape[:2], 0), clusters)
        if widths is None:
            most = max(index.retrieved[i]), max(index.estimated[i])
            widths = min(clusters, most[0]), min(clusters, most[1])
        whole = self.config.int4_values  # every cluster is estimated, none is chosen for it
        chosen = cluster_select(
            q_BHD,
            index.centroid_LBGCD[i],
            pool.size_BGC,
            index.num_clusters_LB[i],
            index.retrieved_LB[i],
            torch.zeros_like(index.estimated_LB[i]) if whole else index.estimated_LB[i],
            args.scale,
            max_retrieved=widths[0],
            max_estimated=0 if whole else widths[1],
            softcap=args.softcap or 0.0,
        )
        retrieved, estimated, logit_BHC = chosen
        if index.spread is not None and self.config.second_order:
            gain = index.spread.correction(i, q_BHD, pool.size_BGC, args.scale)
            logit_BHC = logit_BHC + gain
        zones = Zones(i, retrieved, estimated, logit_BHC, clusters)
        return zones if index.bound is None else self._adapt(zones, q_BHD, pool, args)

    def _adapt(self, zones: Zones, q_BHD: Tensor, pool: Pool, args: AttentionArgs) -> Zones:
        """Estimate those retrieved clusters whose estimate is good enough for this query."""
        i, index, buffer = zones.i, self.index, self.buffer
        assert index.bound is not None and index.spread is not None
        keys = buffer.k_LBGWD[i]  # of the denominator only: the keys stand in for values
        softcap = args.softcap or 0.0
        count = buffer.count_LB[i]
        _, steady_lse = dense_decode(q_BHD, keys, keys, args.scale, end_B=count, softcap=softcap)
        variance = index.spread.variance(i, q_BHD, args.scale)
        ordered, stays = index.bound.keep(
            i, zones.retrieved_BGR, zones.logit_BHC, pool.size_BGC, variance, steady_lse
        )
        estimated = zones.estimated_BGE
        if not self.config.int4_values:  # which estimate whatever is not retrieved
            estimated = torch.cat([estimated, ordered.masked_fill(stays, -1)], -1)
        retrieved = ordered.masked_fill(~stays, -1)
        return replace(zones, retrieved_BGR=retrieved, estimated_BGE=estimated)

    def attend(
        self,
        i: int,
        q_BHD: Tensor,
        pool: Pool,
        zones: Zones,
        args: AttentionArgs,
        *,
        table: CacheTable | None = None,
        pages: tuple[Tensor, Tensor] | None = None,
    ) -> Tensor:
        """``o_BHD`` of the zones; with ``table`` the cache is looked up and filled in this pass.

        ``pages`` are those of the retrieved clusters, if they have been looked up.
        """
        index, cache = self.index, self.buffer.cache
        estimation = None
        if zones.estimated_BGE.shape[-1] and index.value_sum_LBGCD is not None:
            values = index.value_sum_LBGCD[i]
            estimation = Estimation(zones.estimated_BGE, zones.logit_BHC, values)
        exact = q_BHD, self.buffer.steady(i), pool, zones.retrieved_BGR, args.scale
        softcap = args.softcap or 0.0
        if table is not None:
            part = wave_step(*exact, table=table, estimation=estimation, softcap=softcap)
        elif self.config.overlap and pages is not None:
            assert self.worker is not None
            part = self.worker.attend(
                self.shape.layers[i], q_BHD, exact[1], pool, pages, args.scale,
                estimation=estimation, softcap=softcap,
            )  # fmt: skip
        else:
            view = None if cache is None else cache.view(self.shape.layers[i])
            part = wave_attention(*exact, estimation=estimation, cache=view, softcap=softcap)
        out = self._widen(i, pool, zones, part)
        if index.bound is not None:
            index.bound.note_output(i, out)
        return out

    def _widen(self, i: int, pool: Pool, zones: Zones, part: tuple[Tensor, Tensor]) -> Tensor:
        """``o_BHD`` with the clusters that an option adds to the estimation zone."""
        index = self.index
        if not zones.has_clusters or not (self.config.tail or self.config.int4_values):
            return part[0]
        retrieved = estimate.membership(zones.retrieved_BGR, index.capacity)
        if index.means is not None:
            means = index.means.read(i)
            more = estimate.estimate_all(zones.logit_BHC, pool.size_BGC, ~retrieved, means)
        else:
            assert index.value_sum_LBGCD is not None
            read = retrieved | estimate.membership(zones.estimated_BGE, index.capacity)
            sums = index.value_sum_LBGCD[i].float()
            left_BGD = index.total_LBGD[i] - torch.einsum("bgc,bgcd->bgd", read.float(), sums)
            more = estimate.estimate_tail(zones.logit_BHC, pool.size_BGC, ~read, left_BGD)
        out, lse = part
        merged, _ = merge((out.float(), lse), more)
        return merged.to(out.dtype)

    def update(self, i: int, coming: int = 0) -> bool:
        """Form a segment of a row's oldest generated tokens once there are enough.

        ``coming`` counts tokens that are about to be appended. Whether a segment was formed.
        """
        before = self.updates
        late = i if self.config.stagger_updates else 0
        for row in range(self.shape.batch):
            if self.buffer.num_waiting(i, row) + coming >= self.config.update_tokens + late:
                start = self.buffer.oldest_position(i, row)
                k_GSD, v_GSD = self.buffer.take_oldest(i, row)
                layout = self.index.add_segment(i, row, k_GSD, v_GSD)
                self.buffer.place(i, row, k_GSD, v_GSD, layout)
                if self.positions is not None:
                    self.positions.place(i, row, start, layout.target_GS)
                self.updates += 1
        return self.updates > before

    def step(self) -> None:
        """Report what the cache did, layer by layer."""
        if self.worker is not None:
            for layer in self.shape.layers:
                self.worker.finish(layer)
        if self.buffer.cache is not None:
            for moved in self.buffer.cache.traffic():
                self.probe.access(moved.layer, moved.hits, moved.misses, moved.evictions)
                self.probe.moved("h2d", moved.h2d_bytes)

    def allocated(self) -> Footprint:
        """Bytes of index and buffer."""
        return self.buffer.footprint() + self.index.footprint()

    def stats(self) -> Mapping[str, Any]:
        """Cluster counts of the first row and layer, updates per layer and row, cache facts."""
        tiers, index, layers = self.buffer.tiers, self.index, len(self.shape.layers)
        facts = {
            "dense": not any(map(any, index.clusters)),  # too short for an index: all exact
            "clusters": index.clusters[0][0],
            "retrieved_clusters": index.retrieved[0][0],
            "estimated_clusters": index.estimated[0][0],
            "index_updates": self.updates / (layers * self.shape.batch),
            "placement": tiers.place,
            "cache": tiers.manager,
        }
        return facts if self.buffer.cache is None else facts | self.buffer.cache.stats()

    def close(self) -> None:
        """Free everything."""
        if self.worker is not None:
            self.worker.close()
        self.buffer.close()
        self.index.close()
