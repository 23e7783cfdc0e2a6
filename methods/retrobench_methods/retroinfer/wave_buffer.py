"""The wave buffer: where RetroInfer's keys and values are (paper 4.3).

Indexed tokens live once, in cluster order, in the pool of a ``PagedPool``; sinks and tokens that
wait for an index live in its recent zone, the *steady* zone; recently used pages of the pool may
also be in the block cache.
"""

import torch
from retrobench_kernels.cluster_layout import Layout, place_tokens
from retrobench_kernels.wave_attention import Pool
from torch import Tensor

from retrobench.core.method import PromptLayer
from retrobench.core.shapes import Footprint, KVShape
from retrobench.memory.paged_pool import PagedPool, PoolSize
from retrobench.memory.placement import ResolvedPlacement
from retrobench.memory.selection import Spans, SpanView
from retrobench_methods.retroinfer.config import (
    RetroInferConfig,
    capacity,
    pool_tokens,
    steady_tokens,
)


class WaveBuffer(PagedPool):
    """Pool in cluster order, steady zone and block cache. ``i`` is a layer's number."""

    def __init__(
        self, config: RetroInferConfig, shape: KVShape, placement: ResolvedPlacement
    ) -> None:
        size = _size(config, shape, placement)
        super().__init__(shape, placement, size, config.sink_tokens)
        self.config, self.static = config, False

    @staticmethod
    def plan(config: RetroInferConfig, shape: KVShape, placement: ResolvedPlacement) -> Footprint:
        """Bytes before allocation."""
        return PagedPool.plan_pool(shape, placement, _size(config, shape, placement))

    def split_steady(
        self, i: int, row: int, num_indexed: int, prompt: PromptLayer
    ) -> tuple[Tensor, Tensor]:
        """Keep a row's sinks and last tokens; ``k_GSD, v_GSD`` of the tokens to index."""
        pad = self.shape.pad_tokens[row]
        sinks = self.config.sink_tokens if num_indexed else 0
        parts = prompt.k_BGSD[row, :, pad:], prompt.v_BGSD[row, :, pad:]
        steady = (torch.cat([x[:, :sinks], x[:, sinks + num_indexed :]], 1) for x in parts)
        self.set_recent(i, row, *steady)
        indexed = slice(sinks, sinks + num_indexed)
        return parts[0][:, indexed], parts[1][:, indexed]

    def place(self, i: int, row: int, k_GSD: Tensor, v_GSD: Tensor, layout: Layout) -> None:
        """Write tokens to their places in the pool, in cluster order."""
        for tokens, pool in ((k_GSD, self.k_pool[i][row]), (v_GSD, self.v_pool[i][row])):
            if tokens.device == pool.device:
                place_tokens(tokens, layout, pool)
                continue
            # arranged on the device, then copied in one piece per head
            start, end = layout.start, layout.start + tokens.shape[1]
            ordered = tokens.new_empty(tokens.shape)
            place_tokens(tokens, layout._replace(target_GS=layout.target_GS - start), ordered)
            self.offload.copy(pool[:, start:end], ordered, aside=start == 0)

    def load(self, layer: int, prompt: PromptLayer) -> None:
        """Memory of a layer; its tokens follow row by row (``split_steady``, ``place``)."""
        i = self.index[layer]
        self.allocate(i)
        self.lengths[i] = prompt.k_BGSD.shape[2]

    def append(self, layer: int, k_BGTD: Tensor, v_BGTD: Tensor) -> None:
        """Add one token to the steady zone of every row."""
        self.append_recent(self.index[layer], k_BGTD, v_BGTD, self.static)

    def spans(self, layer: int, spans: Spans) -> SpanView:
        """Clusters in the pool, beside the steady zone."""
        i = self.index[layer]
        if not self.static:
            self.offload.finish()
        pool = Pool(self.k_pool[i], self.v_pool[i], spans.first_BGC, spans.size_BGC, spans.page_BGC)
        cache = None if self.cache is None else self.cache.view(layer)
        return SpanView(pool, self.steady(i, self.static), cache)

    def num_staged(self, i: int, row: int) -> int:
        """Tokens of a row that left the local window and are in no cluster yet."""
        return self.count[i][row] - self.config.sink_tokens - self.config.local_tokens

    def oldest_position(self, i: int, row: int) -> int:
        """Position (padding included) of the first token after the sinks that is in no cluster."""
        return self.lengths[i] - self.count[i][row] + self.config.sink_tokens


def page_tokens(placement: ResolvedPlacement) -> int:
    """Tokens of a page; 1 where no cache has pages."""
    return placement.page_tokens if placement.cached else 1


def _size(config: RetroInferConfig, shape: KVShape, placement: ResolvedPlacement) -> PoolSize:
    pages = page_tokens(placement)
    return PoolSize(
        pool_tokens=pool_tokens(config, shape, pages),
        recent_tokens=steady_tokens(config, shape),
        page_tokens=pages,
        part_pages=capacity(config, shape) if pages > 1 else 0,
    )
