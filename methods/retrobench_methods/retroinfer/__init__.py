"""RetroInfer: KV cache as a vector store (arXiv 2505.02922v3, PVLDB 19(5))."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from retrobench.core.budget import Budget
from retrobench.core.shapes import Footprint, KVShape
from retrobench.engine.placement import DeviceStore
from retrobench.engine.selective import SelectiveMethod
from retrobench_methods.retroinfer.config import RetroInferConfig, sizes
from retrobench_methods.retroinfer.wave_index import WaveIndex


class RetroInfer(SelectiveMethod):
    """Tripartite attention over a wave index: steady and retrieved exactly, estimated, ignored."""

    name = "retroinfer"
    Config = RetroInferConfig

    def make_index(self) -> WaveIndex:
        """Segmented spherical k-means with incremental updates."""
        return WaveIndex(self.config, self.shape, self.budget)

    @classmethod
    def plan(cls, config: Any, shape: KVShape, budget: Budget | None = None) -> Footprint:
        """Store plus wave index, after checking the budget."""
        for pad in shape.pad_tokens:
            sizes(config, shape.prompt_tokens - pad, budget, shape.kv_bytes_per_token)
        return DeviceStore.plan(shape) + WaveIndex.plan(config, shape)

    def stats(self) -> Mapping[str, Any]:
        """Cluster counts of the first row and layer."""
        index = self.index
        if not isinstance(index, WaveIndex):
            return {}
        retrieved, estimated = index._counts(0)
        return {
            "clusters": index.clusters[0][0],
            "retrieved_clusters": retrieved[0],
            "estimated_clusters": estimated[0],
            "index_updates": index.updates[0][0],
        }
