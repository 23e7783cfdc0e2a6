"""RetroInfer: KV cache as a vector store (arXiv 2505.02922v3, PVLDB 19(5)).

``WaveIndex`` says which clusters matter, ``WaveBuffer`` where their keys and values are, and this
module attends a layer's selection in one pass: look up, attend, admit.
"""

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, ClassVar

import torch
from retrobench_kernels.cluster_layout import Layout
from retrobench_kernels.wave_attention import Pool, Steady, wave_attention
from retrobench_kernels.wave_step import cluster_pages, wave_step
from torch import Tensor

from retrobench.core.budget import Budget
from retrobench.core.method import AttentionArgs, PromptLayer
from retrobench.core.shapes import Footprint, KVShape
from retrobench.engine.attention.parts import merge_all
from retrobench.engine.attention.selective import SelectiveMethod
from retrobench.memory.page_cache import PageCache
from retrobench.memory.selection import Partial, Selection, Spans, SpanView
from retrobench_methods.retroinfer.async_cache import CacheFiller
from retrobench_methods.retroinfer.config import RetroInferConfig, num_indexed, resolve_placement
from retrobench_methods.retroinfer.positions import Positions
from retrobench_methods.retroinfer.prepared import PreparedSteps
from retrobench_methods.retroinfer.selection import ClusterSelection
from retrobench_methods.retroinfer.wave_buffer import WaveBuffer, page_tokens
from retrobench_methods.retroinfer.wave_index import WaveIndex


class RetroInfer(SelectiveMethod):
    """Tripartite attention over a wave index: steady and retrieved exactly, estimated, ignored."""

    name = "retroinfer"
    memory_knob = "cache_frac"
    adaptive = True
    index_class: ClassVar[type[WaveIndex]] = WaveIndex
    Config = RetroInferConfig
    index: WaveIndex
    store: WaveBuffer

    def setup(self) -> None:
        """Make index and buffer, and what fills the cache beside attention."""
        config, shape = self.config, self.shape
        self.placement = resolve_placement(config, shape)
        super().setup()
        self.positions = Positions(self.store) if self.probe.detail else None
        self.filler: CacheFiller | None = None
        if config.fills_aside:
            assert self.store.cache is not None
            self.filler = CacheFiller(self.store.cache, shape.device)
        self.prepared = PreparedSteps(self.index, self.store)
        self.updates = 0

    def make_index(self) -> WaveIndex:
        """Clusters."""
        return self.index_class(self.config, self.shape, self.budget, page_tokens(self.placement))

    def make_store(self) -> WaveBuffer:
        """The pool in cluster order."""
        return WaveBuffer(self.config, self.shape, self.placement)

    @classmethod
    def plan(cls, config: Any, shape: KVShape, budget: Budget | None = None) -> Footprint:
        """Pool, steady zone, cache and wave index, after checking budget and options."""
        placement = resolve_placement(config, shape)
        index = cls.index_class.plan(config, shape, budget, page_tokens(placement))
        return WaveBuffer.plan(config, shape, placement) + index

    def build(self, layer: int, prompt: PromptLayer) -> None:
        """Cluster every row of a layer and arrange it in cluster order."""
        i = self.index.slot[layer]
        self.prepared.forget(i)
        self.store.load(layer, prompt)
        self.store.static = self.index.static = self.static
        for row, pad in enumerate(self.shape.pad_tokens):
            covered = 0
            if self.index.sizes[row][0].clusters:
                covered = num_indexed(self.config, self.store.lengths[i] - pad)
            k_GSD, v_GSD = self.store.split_steady(i, row, covered, prompt)
            if covered:
                layout = self.index.add_prompt(i, row, k_GSD, v_GSD)
                self._place(i, row, pad + self.config.sink_tokens, k_GSD, v_GSD, layout)

    def begin_step(self) -> None:
        """Form the segments that are due; a graph's token counts are the host's part too."""
        for i in range(len(self.shape.layers)):
            for row in range(self.shape.batch):
                self._update(i, row)
            if self.static:
                self.store.count_recent(i)

    def _update(self, i: int, row: int) -> None:
        """Cluster a row's oldest generated tokens, once they are enough.

        Staggered, the first layer counts the coming token too.
        """
        late = i - 1 if self.config.stagger_updates else 0
        if self.store.num_staged(i, row) < self.config.update_tokens + late:
            return
        with self.probe.span("update"):
            self.prepared.forget(i)
            start = self.store.oldest_position(i, row)
            k_GSD, v_GSD = self.store.pop_oldest(i, row, self.config.update_tokens)
            layout = self.index.add_segment(i, row, k_GSD, v_GSD)
            self._place(i, row, start, k_GSD, v_GSD, layout)
        self.updates += 1

    def _place(
        self, i: int, row: int, start: int, k_GSD: Tensor, v_GSD: Tensor, layout: Layout
    ) -> None:
        """Write clustered tokens, the first of which has position ``start``, to the pool."""
        self.store.place(i, row, k_GSD, v_GSD, layout)
        if self.positions is not None:
            self.positions.place(i, row, start, layout.target_GS)

    def decode(
        self, layer: int, q_BHTD: Tensor, k_BGTD: Tensor, v_BGTD: Tensor, args: AttentionArgs
    ) -> Tensor:
        """Append, select, attend: in one prepared call where nothing else is asked for."""
        i = self.index.slot[layer]
        if not self.prepared.fits(i, self.probe):
            return super().decode(layer, q_BHTD, k_BGTD, v_BGTD, args)
        tell = self.probe.counting
        out_BHTD, chosen = self.prepared.run(i, q_BHTD, k_BGTD, v_BGTD, args, tell)
        if chosen is not None:
            spans, heads = self.prepared.selection(i, chosen), self.shape.num_kv_heads
            steady = self.store.count_LB[i].sum() * heads
            self.count(layer, spans.num_tokens + steady, heads * self.shape.batch, spans)
        return out_BHTD

    def attend_in_place(
        self, layer: int, q_BHD: Tensor, spans: Spans, view: SpanView, args: AttentionArgs
    ) -> Tensor:
        """``o_BHD`` of steady, retrieved and estimated zone; the cache is kept up."""
        assert isinstance(spans, ClusterSelection)
        cache = self.store.cache if spans.chosen_BGN.shape[-1] else None
        exact = q_BHD.contiguous(), view.steady, view.pool, spans.chosen_BGN, args.scale
        more = {"estimation": spans.estimation, "softcap": args.softcap or 0.0}
        if cache is not None and not self.fused:
            part = self._attend_and_admit(layer, cache, spans, exact, more)
        else:
            with self.probe.span("attend"):
                table = None if cache is None else cache.table(layer)
                attend = wave_attention if table is None else wave_step
                part = attend(*exact, cache=table, **more)
        out_BHD = merge_all(part, spans.partials).to(q_BHD.dtype)
        if self.index.bound is not None:
            self.index.bound.note_output(self.index.slot[layer], out_BHD)
        return out_BHD

    def _attend_and_admit(
        self,
        layer: int,
        cache: PageCache,
        spans: ClusterSelection,
        exact: tuple[Tensor, Steady, Pool, Tensor, float],
        more: Mapping[str, Any],
    ) -> Partial:
        """Look pages up, attend over cache and pool, admit what was missed, one after another."""
        pool = exact[2]
        with self.probe.span("lookup"):
            pages = cluster_pages(pool, spans.chosen_BGN, self.store.page_tokens)
            cache.lookup(layer, pages)
        with self.probe.span("attend"):
            if self.config.overlap:
                assert self.filler is not None
                part = self.filler.attend(layer, exact, pages, **more)
            else:
                part = wave_attention(*exact, cache=cache.view(layer), **more)
        with self.probe.span("admit"):
            if self.config.async_update:
                assert self.filler is not None
                self.filler.update(layer, pages, pool)
            elif not self.config.overlap:
                cache.admit(layer, pool.k_BGSD, pool.v_BGSD)
            if self.config.prefetch_frac:
                assert self.filler is not None
                retrieved = max(self.index.retrieved[self.index.slot[layer]])
                count = math.ceil(self.config.prefetch_frac * retrieved)
                self.filler.prefetch(layer, spans, pool, count, self.config.weigh_sizes)
        return part

    @property
    def fused(self) -> bool:
        """Whether lookup, attention and admission are one kernel: on a GPU, and in any graph."""
        on_gpu = torch.device(self.shape.device).type == "cuda"
        apart = self.filler is not None or self.config.cache_bound
        return (on_gpu or self.static) and self.placement.manager == "device" and not apart

    def count(
        self, layer: int, tokens: int | Tensor, heads: int, selection: Selection, **more: Any
    ) -> None:
        """Also what estimates stand for, and what choosing has read."""
        assert isinstance(selection, ClusterSelection)
        i = self.index.slot[layer]
        index_bytes = self.index.index_bytes(i, selection)
        if self.index.reads_steady:  # its keys are read once more
            steady = self.store.count_LB[i].sum() * self.shape.num_kv_heads
            index_bytes = index_bytes + steady * self.store.bytes_per_token() // 2
        estimated = self.index.estimated_tokens(i, selection)
        found = replace(selection, estimated_tokens=estimated, index_bytes=index_bytes)
        super().count(layer, tokens, heads, found, **more)

    def report_spans(self, layer: int, spans: Spans, view: SpanView) -> None:
        """Positions of clusters and of the steady zone, and the estimates."""
        assert self.positions is not None and isinstance(spans, ClusterSelection)
        self.positions.report(self.probe, layer, self.index, spans, view)

    def end_step(self) -> None:
        """Wait for what still fills the cache."""
        if self.filler is not None:
            for layer in self.shape.layers:
                self.filler.finish(layer)

    @classmethod
    def no_graph(cls, config: Any, shape: KVShape) -> str | None:
        """A graph cannot ask the host for pages, nor wait for a thread."""
        if resolve_placement(config, shape).manager == "host":
            return "method.cache=host asks the host in every layer; use method.cache=device or none"
        if config.fills_aside:
            return (
                "pages are admitted inside the attention kernel; use method.overlap=false, "
                "method.async_update=false and method.prefetch_frac=0"
            )
        return None

    def stats(self) -> Mapping[str, Any]:
        """Cluster counts of the first row and layer, updates per layer and row, cache fields."""
        index, layers = self.index, len(self.shape.layers)
        found = {
            "dense": not any(map(any, index.clusters)),  # too short for an index: all exact
            "clusters": index.clusters[0][0],
            "retrieved_clusters": index.retrieved[0][0],
            "estimated_clusters": index.estimated[0][0],
            "index_updates": self.updates / (layers * self.shape.batch),
            "placement": self.placement.place,
            "cache": self.placement.manager,
        }
        return found if self.store.cache is None else found | self.store.cache.stats()

    def close(self) -> None:
        """Free everything; prepared steps point to the tensors of index and store."""
        self.prepared.steps.clear()
        if self.filler is not None:
            self.filler.close()
        super().close()
