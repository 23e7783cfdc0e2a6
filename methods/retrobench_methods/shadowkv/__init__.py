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

    def setup(self) -> None:
        """Also count what is fetched."""
        super().setup()
        self.fetched: float | Tensor = 0.0
        self.steps = 0  # of all layers

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
        """Keys of fetched chunks are read as factors; their values come over the bus."""
        super().count(layer, tokens, heads, selection, **more)
        shape, rank = self.shape, self.store.rank
        fetched = self.store.fetched[self.index.slot[layer]].clone()
        elements = shape.batch * shape.num_kv_heads * rank * shape.head_dim
        rebuilt = fetched * (rank - shape.head_dim) + elements * (fetched > 0)
        offloaded = fetched * shape.head_dim * (self.store.place != "gpu")
        size = shape.value_bytes
        self.probe.count(layer, kv=size * rebuilt, h2d=size * offloaded)
        self.fetched, self.steps = self.fetched + fetched, self.steps + 1

    def stats(self) -> Mapping[str, Any]:
        """Rank, how much of the keys it holds, share of chunks reused, the first row's chunks."""
        kept, zone = self.store.kept, self.index.zones[0]
        size = self.config.chunk_tokens * self.shape.num_kv_heads
        asked = self.steps * size * sum(zone.selected for zone in self.index.zones)
        return {
            "reused_frac": 1 - float(self.fetched) / asked if asked else 0.0,
            "rank": self.store.rank,
            "kept_norm": sum(kept) / len(kept) if kept else 1.0,  # squared
            "outlier_chunks": zone.outliers,
            "selected_chunks": zone.selected,
        }
