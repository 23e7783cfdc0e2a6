"""ShadowKV: chunks by their landmark, keys rebuilt from a low-rank product, values offloaded.

arXiv 2410.21465. The keys are factored before their rotation, where they are of low rank.
"""

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from retrobench.core.budget import Budget
from retrobench.core.method import Needs, PromptLayer
from retrobench.core.shapes import Footprint, KVShape
from retrobench.engine.attention.selective import SelectiveMethod
from retrobench.memory.selection import Selection
from retrobench_methods.shadowkv.config import ShadowKVConfig, zones
from retrobench_methods.shadowkv.landmarks import Landmarks
from retrobench_methods.shadowkv.low_rank import LowRankStore


class ShadowKV(SelectiveMethod):
    """Outliers, heaviest chunks and the newest tokens."""

    name = "shadowkv"
    index_class = Landmarks
    Config = ShadowKVConfig
    needs = Needs(prompt_rotary=True)
    index: Landmarks
    store: LowRankStore

    def make_store(self) -> LowRankStore:
        """Low-rank keys, values elsewhere."""
        return LowRankStore(self.config, self.shape, self.index.zones)

    @classmethod
    def plan(cls, config: Any, shape: KVShape, budget: Budget | None = None) -> Footprint:
        """Store and landmarks, after checking the budget."""
        store = LowRankStore.plan(config, shape, zones(config, shape, budget))
        return store + Landmarks.plan(config, shape, budget)

    def build(self, layer: int, prompt: PromptLayer) -> None:
        """Fill the store and the index, then keep the outliers exactly."""
        super().build(layer, prompt)
        self.store.keep(layer, prompt, self.index.outlier_LBGK[self.index.slot[layer]])

    def count(
        self, layer: int, tokens: int | Tensor, heads: int, selection: Selection, **more: Any
    ) -> None:
        """Keys of selected chunks are read as factors; their values come over the bus."""
        super().count(layer, tokens, heads, selection, **more)
        shape, rank = self.shape, self.store.rank
        size = self.config.chunk_tokens * shape.num_kv_heads * shape.value_bytes
        rebuilt = size * sum(zone.selected for zone in self.index.zones)
        factors = shape.batch * shape.num_kv_heads * rank * shape.head_dim * shape.value_bytes
        offloaded = rebuilt * shape.head_dim * (self.store.place != "gpu")
        extra = rebuilt * (rank - shape.head_dim) + factors * (rebuilt > 0)
        self.probe.count(layer, kv=extra, h2d=offloaded)

    def stats(self) -> Mapping[str, Any]:
        """Rank, how much of the keys it holds, and the first row's chunks."""
        kept, zone = self.store.kept, self.index.zones[0]
        return {
            "rank": self.store.rank,
            "kept_norm": sum(kept) / len(kept) if kept else 1.0,  # squared
            "outlier_chunks": zone.outliers,
            "selected_chunks": zone.selected,
        }
