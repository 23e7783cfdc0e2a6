"""RetroInfer: KV cache as a vector store (arXiv 2505.02922v3, PVLDB 19(5)).

``WaveIndex`` says which clusters matter, ``WaveBuffer`` where their keys and values are, and this
module runs a layer's step: append, select, look up, attend in one pass, admit.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from retrobench_kernels.wave_attention import wave_attention
from retrobench_kernels.wave_step import wave_step
from torch import Tensor

from retrobench.core.budget import Budget
from retrobench.core.method import AttentionArgs, PromptLayer
from retrobench.core.shapes import Footprint, KVShape
from retrobench.engine.attention.parts import merge_all
from retrobench.engine.attention.selective import SelectiveMethod
from retrobench.memory.selection import Partial, SpanView
from retrobench_methods.retroinfer.async_cache import CacheFiller
from retrobench_methods.retroinfer.config import (
    RetroInferConfig,
    num_indexed,
    resolve_placement,
    sizes,
)
from retrobench_methods.retroinfer.positions import Positions
from retrobench_methods.retroinfer.wave_buffer import WaveBuffer, cluster_pages, page_tokens
from retrobench_methods.retroinfer.wave_index import ClusterSelection, WaveIndex


class RetroInfer(SelectiveMethod):
    """Tripartite attention over a wave index: steady and retrieved exactly, estimated, ignored."""

    name = "retroinfer"
    memory_knob = "cache_frac"
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
        if config.overlap or config.prefetch_frac:
            assert self.store.cache is not None
            self.filler = CacheFiller(self.store.cache, shape.device)
        self.updates = 0

    def make_index(self) -> WaveIndex:
        """Clusters."""
        return WaveIndex(self.config, self.shape, self.budget, page_tokens(self.placement))

    def make_store(self) -> WaveBuffer:
        """The pool in cluster order."""
        return WaveBuffer(self.config, self.shape, self.placement)

    @classmethod
    def plan(cls, config: Any, shape: KVShape, budget: Budget | None = None) -> Footprint:
        """Pool, steady zone, cache and wave index, after checking budget and options."""
        placement = resolve_placement(config, shape)
        for pad in shape.pad_tokens:
            sizes(config, shape.prompt_tokens - pad, budget, shape.kv_bytes_per_token)
        return WaveBuffer.plan(config, shape, placement) + WaveIndex.plan(config, shape)

    def build(self, layer: int, prompt: PromptLayer) -> None:
        """Cluster every row of a layer and arrange it in cluster order."""
        i = self.index.number[layer]
        self.store.load(layer, prompt)
        self.store.static = self.index.static = self.static
        for row, pad in enumerate(self.shape.pad_tokens):
            covered = 0
            if self.index.sizes[row].clusters:
                covered = num_indexed(self.config, self.store.lengths[i] - pad)
            k_GSD, v_GSD = self.store.split_steady(i, row, covered, prompt)
            if covered:
                layout = self.index.add_prompt(i, row, k_GSD, v_GSD)
                self.store.place(i, row, k_GSD, v_GSD, layout)
                if self.positions is not None:
                    start = pad + self.config.sink_tokens
                    self.positions.place(i, row, start, layout.target_GS)

    def begin_step(self) -> None:
        """Form the segments that are due; a graph's token counts are the host's part too."""
        for i in range(len(self.shape.layers)):
            for row in range(self.shape.batch):
                self._update(i, row)
            if self.static:
                self.store.count_recent(i)

    def _update(self, i: int, row: int) -> None:
        """Cluster a row's oldest generated tokens, once the coming one makes them enough."""
        late = i if self.config.stagger_updates else 0
        if self.store.num_staged(i, row) + 1 < self.config.update_tokens + late:
            return
        start = self.store.oldest_position(i, row)
        k_GSD, v_GSD = self.store.pop_oldest(i, row, self.config.update_tokens)
        layout = self.index.add_segment(i, row, k_GSD, v_GSD)
        self.store.place(i, row, k_GSD, v_GSD, layout)
        if self.positions is not None:
            self.positions.place(i, row, start, layout.target_GS)
        self.updates += 1

    def decode(
        self, layer: int, q_BHTD: Tensor, k_BGTD: Tensor, v_BGTD: Tensor, args: AttentionArgs
    ) -> Tensor:
        """Append, select clusters, and attend the three zones in one pass."""
        if self.filler is not None:
            self.filler.finish(layer)  # it reads pool and index
        self.store.append(layer, k_BGTD, v_BGTD)
        with self.probe.span("select"):
            selection = self.index.select(layer, q_BHTD, self.store, args)
        view = self.store.spans(layer, selection)
        out, lse = self._attend(layer, q_BHTD[:, :, 0].contiguous(), selection, view, args)
        out_BHD = merge_all((out, lse), selection.partials).to(q_BHTD.dtype)
        if self.index.bound is not None:
            self.index.bound.note_output(self.index.number[layer], out_BHD)
        if self.probe.counting:
            self._count(layer, selection)
        if self.positions is not None:
            self.positions.report(self.probe, layer, self.index, selection, view)
        return out_BHD[:, :, None]

    def _attend(
        self,
        layer: int,
        q_BHD: Tensor,
        selection: ClusterSelection,
        view: SpanView,
        args: AttentionArgs,
    ) -> Partial:
        """``(o_BHD, lse_BH)`` of steady, retrieved and estimated zone; the cache is kept up."""
        cache, softcap = self.store.cache, args.softcap or 0.0
        exact = q_BHD, view.steady, view.pool, selection.chosen_BGN, args.scale
        more: dict[str, Any] = {"estimation": selection.estimation, "softcap": softcap}
        if cache is None or not selection.chosen_BGN.shape[-1]:
            with self.probe.span("attend"):
                return wave_attention(*exact, **more)
        table = cache.table(layer) if self.fused else None
        if table is not None:
            with self.probe.span("attend"):
                return wave_step(*exact, table=table, **more)
        with self.probe.span("lookup"):
            pages = cluster_pages(view.pool, selection.chosen_BGN, self.store.page_tokens)
            cache.lookup(layer, *pages)
        with self.probe.span("attend"):
            if self.config.overlap:
                assert self.filler is not None
                part = self.filler.attend(layer, *exact[:3], pages, args.scale, **more)
            else:
                part = wave_attention(*exact, cache=view.cache, **more)
        with self.probe.span("admit"):
            if not self.config.overlap:
                cache.admit(layer, view.pool.k_BGSD, view.pool.v_BGSD)
            if self.config.prefetch_frac:
                assert self.filler is not None
                retrieved = max(self.index.retrieved[self.index.number[layer]])
                count = math.ceil(self.config.prefetch_frac * retrieved)
                self.filler.prefetch(layer, selection, view.pool, count)
        return part

    @property
    def fused(self) -> bool:
        """Whether lookup, attention and admission are one kernel: on a GPU, and in any graph."""
        on_gpu = torch.device(self.shape.device).type == "cuda"
        return (on_gpu or self.static) and self.filler is None and not self.config.cache_bound

    def _count(self, layer: int, selection: ClusterSelection) -> None:
        """Tokens attended and estimated per row and KV head, and bytes read."""
        i, heads = self.index.number[layer], self.shape.batch * self.shape.num_kv_heads
        steady = self.store.count_LB[i].sum() * self.shape.num_kv_heads
        exact = selection.num_tokens + steady
        index_bytes = self.index.index_bytes(i, selection)
        if self.index.bound is not None:  # its steady keys are read once more
            index_bytes = index_bytes + steady * self.store.bytes_per_token() // 2
        self.probe.count(
            layer,
            attended=exact / heads,
            estimated=self.index.estimated_tokens(i, selection),
            kv=exact * self.store.bytes_per_token(),
            index=index_bytes,
        )

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
        if config.overlap or config.prefetch_frac:
            return (
                "pages are admitted inside the attention kernel; use method.overlap=false and "
                "method.prefetch_frac=0"
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
        """Free everything."""
        if self.filler is not None:
            self.filler.close()
        self.store.close()
        self.index.close()
