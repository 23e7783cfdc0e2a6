"""RetroInfer's decode state with every length in device memory, for a captured CUDA graph.

``attend`` is the whole attention of one layer and step: static shapes, no host round trip. What the
host must do, forming a new segment after ``update_tokens`` tokens, happens between steps in
``begin_step`` and writes into preallocated capacity, so that the captured graph stays valid. The
host knows when without asking the device, because every row grows by one token per step.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from retrobench_kernels.cluster_layout import Layout, cluster_layout, place_tokens
from retrobench_kernels.cluster_select import cluster_select
from retrobench_kernels.segmented_kmeans import segmented_kmeans
from retrobench_kernels.wave_attention import Estimation, Pool, Steady, wave_attention
from retrobench_kernels.wave_step import CacheTable, wave_step
from torch import Tensor

from retrobench.core.budget import Budget
from retrobench.core.method import AttentionArgs
from retrobench.core.shapes import KVShape
from retrobench.engine.placement import allocate
from retrobench_methods.retroinfer.config import RetroInferConfig, capacity, num_indexed, sizes


class LayerState(NamedTuple):
    """Device tensors of one layer; ``used_B``, ``want_r_B`` and ``want_e_B`` count clusters."""

    steady: Steady
    pool: Pool
    centroid_BGCD: Tensor
    value_sum_BGCD: Tensor
    used_B: Tensor
    want_r_B: Tensor
    want_e_B: Tensor
    pool_used_BG: Tensor
    table: CacheTable | None


class DeviceWave:
    """Attention owner of decode steps; ``load`` each layer's prompt first."""

    def __init__(
        self,
        config: RetroInferConfig,
        shape: KVShape,
        budget: Budget | None = None,
        *,
        place: str = "gpu",
        cache_slots: int = 0,
        page_tokens: int = 8,
    ) -> None:
        """``place`` of the pool: gpu or pinned; ``cache_slots`` pages per head (0: no cache)."""
        self.config, self.shape, self.place = config, shape, place
        self.slots, self.page_tokens = cache_slots, page_tokens if cache_slots else 1
        contexts = [shape.prompt_tokens - pad for pad in shape.pad_tokens]
        short = [n for n in contexts if num_indexed(config, n) == 0]
        if short:
            raise ValueError(
                f"device decode needs prompts of at least one segment; got {min(short)} tokens, "
                f"below sink + local + update = "
                f"{config.sink_tokens + config.local_tokens + config.update_tokens}"
            )
        self.contexts = contexts
        self.sizes = [sizes(config, n, budget, shape.kv_bytes_per_token) for n in contexts]
        self.updates = 0
        self.max_updates = max(0, (shape.max_tokens - shape.prompt_tokens) // config.update_tokens)
        self.steady_tokens = config.sink_tokens + config.local_tokens  # of every row and layer
        self.row_B = torch.arange(shape.batch, device=shape.device)
        self.layers = {layer: self._allocate() for layer in shape.layers}

    def load(self, layer: int, k_BGSD: Tensor, v_BGSD: Tensor) -> None:
        """Index a layer's prompt (left-padded as in ``shape``) and fill its steady zone."""
        state, sink, local = self.layers[layer], self.config.sink_tokens, self.config.local_tokens
        state.pool_used_BG.zero_()
        for row, pad in enumerate(self.shape.pad_tokens):
            indexed = num_indexed(self.config, self.contexts[row])
            middle = slice(pad + sink, pad + sink + indexed)
            for kv, steady in zip((k_BGSD, v_BGSD), state.steady[:2], strict=True):
                edges = kv[row, :, pad : pad + sink], kv[row, :, middle.stop :]
                steady[row, :, : sink + local] = torch.cat(edges, 1)
            want = self.sizes[row]
            parts = k_BGSD[row, :, middle], v_BGSD[row, :, middle]
            self._add(state, row, *parts, 0, want.clusters, want.segments)
        for kind, name in ((state.used_B, "clusters"), (state.want_r_B, "retrieved")):
            kind.copy_(torch.tensor([getattr(want, name) for want in self.sizes]))
        state.want_e_B.copy_(torch.tensor([want.estimated for want in self.sizes]))
        state.steady.count_B.fill_(sink + local)

    def begin_step(self) -> bool:
        """Before a step: form a segment if one is due. Host side, outside of the graph."""
        config = self.config
        waiting = self.steady_tokens + 1 - config.sink_tokens - config.local_tokens
        grows = waiting >= config.update_tokens and self.updates < self.max_updates
        if grows:
            for state in self.layers.values():
                self._grow(state)
            self.updates += 1
            self.steady_tokens -= config.update_tokens
        self.steady_tokens += 1
        return grows

    def attend(
        self, layer: int, q_BHTD: Tensor, k_BGTD: Tensor, v_BGTD: Tensor, args: AttentionArgs
    ) -> Tensor:
        """One token: append, select, attend. Everything that varies is in device memory."""
        state = self.layers[layer]
        place_B = state.steady.count_B.long()
        state.steady.k_BGWD[self.row_B, :, place_B] = k_BGTD[:, :, 0]
        state.steady.v_BGWD[self.row_B, :, place_B] = v_BGTD[:, :, 0]
        state.steady.count_B.add_(1)
        q_BHD, softcap = q_BHTD[:, :, 0].contiguous(), args.softcap or 0.0
        retrieved, estimated, logit = cluster_select(
            q_BHD, state.centroid_BGCD, state.pool.size_BGC,
            state.used_B, state.want_r_B, state.want_e_B, args.scale,
            max_retrieved=self._most("retrieved"), max_estimated=self._most("estimated"),
            softcap=softcap,
        )  # fmt: skip
        zones = (q_BHD, state.steady, state.pool, retrieved, args.scale)
        estimation = Estimation(estimated, logit, state.value_sum_BGCD)
        if state.table is None:
            out, _ = wave_attention(*zones, estimation=estimation, softcap=softcap)
        else:
            out = self._attend_cached(layer, zones, state.table, estimation, softcap)
        return out[:, :, None]

    def _attend_cached(
        self, layer: int, zones: Any, table: CacheTable, estimation: Estimation, softcap: float
    ) -> Tensor:
        """``o_BHD`` through the layer's page cache."""
        table.step_1.add_(1)
        return wave_step(*zones, table=table, estimation=estimation, softcap=softcap)[0]

    def hit_ratio(self) -> float | None:
        """Page hits over page accesses so far (waits for the device); None without a cache."""
        tables = [state.table for state in self.layers.values() if state.table is not None]
        if not tables:
            return None
        hits, misses = torch.stack([t.tally_BG2.sum((0, 1)) for t in tables]).sum(0).tolist()
        return hits / max(1, hits + misses)

    def _most(self, kind: str) -> int:
        """Static width of a list: the widest row's with every update that may come."""
        return max(
            getattr(want, kind) + self.max_updates * getattr(want, f"{kind}_per_update")
            for want in self.sizes
        )

    def _allocate(self) -> LayerState:
        shape, config = self.shape, self.config
        head, dim = (shape.batch, shape.num_kv_heads), shape.head_dim
        dtype, device = getattr(torch, shape.dtype), shape.device
        room = config.sink_tokens + config.local_tokens + config.update_tokens
        if self.max_updates == 0:
            room += shape.max_tokens - shape.prompt_tokens
        clusters = capacity(config, shape) + self.sizes[0].update_clusters
        tokens = max(
            num_indexed(config, context) + want.clusters * (self.page_tokens - 1)
            for context, want in zip(self.contexts, self.sizes, strict=True)
        )
        grown = config.update_tokens + self.sizes[0].update_clusters * (self.page_tokens - 1)
        tokens += self.max_updates * grown
        tokens = -(-tokens // self.page_tokens) * self.page_tokens

        def ints(*size: int, fill: int = 0, dtype: torch.dtype = torch.int32) -> Tensor:
            return torch.full(size, fill, dtype=dtype, device=device)

        def vectors(width: int) -> Tensor:
            return torch.zeros(*head, width, dim, dtype=dtype, device=device)

        pool_k, pool_v = (allocate((*head, tokens, dim), shape, self.place) for _ in "kv")
        table = None
        if self.slots:
            table = CacheTable(
                ints(*head, tokens // self.page_tokens, fill=-1),
                ints(*head, self.slots, fill=-1),
                ints(*head, self.slots, fill=-1),
                ints(1),
                ints(*head, 2, dtype=torch.int64),
                vectors(self.slots * self.page_tokens),
                vectors(self.slots * self.page_tokens),
                self.page_tokens,
            )
        batch = shape.batch
        return LayerState(
            Steady(vectors(room + 1), vectors(room + 1), ints(batch)),
            Pool(pool_k, pool_v, ints(*head, clusters), ints(*head, clusters)),
            vectors(clusters),
            vectors(clusters),
            ints(batch),
            ints(batch),
            ints(batch),
            ints(*head, dtype=torch.int64),
            table,
        )

    def _add(
        self,
        state: LayerState,
        row: int,
        k_GSD: Tensor,
        v_GSD: Tensor,
        first: int,
        clusters: int,
        segments: int,
    ) -> None:
        """Cluster S tokens of a row into clusters ``first`` and on, and move them to the pool."""
        config = self.config
        centroid, label = segmented_kmeans(
            k_GSD, clusters, segments, config.kmeans_iterations, config.final_assign
        )
        layout = cluster_layout(label, clusters, self.page_tokens)
        used_G1 = state.pool_used_BG[row][:, None]
        moved = Layout(
            layout.target_GS + used_G1, layout.first_GC + used_G1.int(), layout.size_GC, layout[3]
        )
        for kv, pool in zip((k_GSD, v_GSD), state.pool[:2], strict=True):
            place_tokens(kv, moved, pool[row])
        span = slice(first, first + clusters)
        state.pool.first_BGC[row, :, span] = moved.first_GC
        state.pool.size_BGC[row, :, span] = moved.size_GC
        state.centroid_BGCD[row, :, span] = centroid.to(state.centroid_BGCD.dtype)
        value_sum = torch.zeros_like(centroid)
        spread = label[..., None].expand(-1, -1, v_GSD.shape[-1])
        value_sum.scatter_add_(1, spread, v_GSD.float())
        state.value_sum_BGCD[row, :, span] = value_sum.to(state.value_sum_BGCD.dtype)
        state.pool_used_BG[row] += moved.used_G

    def _grow(self, state: LayerState) -> None:
        """The oldest ``update_tokens`` behind the sinks become a segment."""
        sink, size = self.config.sink_tokens, self.config.update_tokens
        for row, want in enumerate(self.sizes):
            k, v = (kv[row, :, sink : sink + size] for kv in state.steady[:2])
            first = want.clusters + self.updates * want.update_clusters
            self._add(state, row, k, v, first, want.update_clusters, 1)
        for kv in state.steady[:2]:
            rest = kv[:, :, sink + size : self.steady_tokens].clone()
            kv[:, :, sink : sink + rest.shape[2]] = rest
        state.steady.count_B.sub_(size)
        for counts, name in ((state.used_B, "update_clusters"), (state.want_r_B, "retrieved")):
            suffix = "" if name == "update_clusters" else "_per_update"
            counts.add_(torch.tensor([getattr(w, name + suffix) for w in self.sizes]).to(counts))
        more = torch.tensor([want.estimated_per_update for want in self.sizes])
        state.want_e_B.add_(more.to(state.want_e_B))
