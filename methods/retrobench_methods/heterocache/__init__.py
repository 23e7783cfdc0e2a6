"""HeteroCache: heads of four roles; satellites reload what their pivot attends (2601.13684)."""

from collections.abc import Mapping
from typing import Any

from retrobench.core.budget import Budget
from retrobench.core.method import ModelView, Needs
from retrobench.core.shapes import Footprint, KVShape
from retrobench.engine.attention.evicting import EvictingMethod
from retrobench.memory.placement import kv_bytes, placed, resolve_place
from retrobench.memory.prefetch import Prefetcher
from retrobench.memory.ragged import RaggedStore
from retrobench.memory.selection import Selection
from retrobench_methods.heterocache import calibration
from retrobench_methods.heterocache.config import HeteroCacheConfig, head_tokens, mean_tokens
from retrobench_methods.heterocache.monitor import DriftIndex


class HeteroCache(EvictingMethod):
    """Each head attends what it holds of the prompt, and all later tokens."""

    name = "heterocache"
    together = True
    index_class = DriftIndex  # type: ignore[assignment]
    Config = HeteroCacheConfig
    needs = Needs(calibration=True, prompt_queries=1)
    Calibrator = calibration.RoleCalibration
    index: DriftIndex

    def setup(self) -> None:
        """Also what looks and reloads run in."""
        super().setup()
        self.index.prefetcher = Prefetcher(self.shape.device, self.config.prefetch)

    @classmethod
    def plan(cls, config: Any, shape: KVShape, budget: Budget | None = None) -> Footprint:
        """What the heads hold (their sum does not depend on roles), the copy, and references."""
        tokens = sum(mean_tokens(config, shape, budget)) * shape.num_kv_heads
        held = RaggedStore.plan(shape, [tokens] * len(shape.layers))
        place = resolve_place(config.placement, shape.device)
        copy = placed(kv_bytes(shape, shape.prefilled_tokens), place)
        return held + copy + DriftIndex.plan(config, shape, budget)

    @classmethod
    def check_calibrated(
        cls, config: Any, weights_id: str, shape: KVShape, budget: Budget | None
    ) -> None:
        """ValueError for a budget below the floor of these weights' roles."""
        file = calibration.RoleCalibration.find(config, weights_id)
        head_tokens(config, shape, budget, calibration.load(file, config, shape))

    def bind(self, model: ModelView) -> None:
        """Give the heads of this model their roles."""
        file = calibration.RoleCalibration.find(self.config, model.weights_id)
        self.index.assign(calibration.load(file, self.config, self.shape))

    def count(self, layer: int, tokens: Any, heads: int, selection: Selection, **more: Any) -> None:
        """Also what came over the bus."""
        super().count(layer, tokens, heads, selection, h2d=self.index.moved_bytes, **more)

    def stats(self) -> Mapping[str, Any]:
        """Heads of each role; looks at pivots and the share of them that reloaded satellites."""
        index, found = self.index, {}
        if index.looks:
            pairs = zip(index.base_B, index.context_B, strict=True)
            found = {
                "reload_rate": index.reloads / index.looks,
                "chance_overlap": sum(base / n for base, n in pairs) / self.shape.batch,
            }
        return {**index.roles.counts(), "looks": index.looks, **found}

    def close(self) -> None:
        """End what is in flight, then free everything."""
        self.index.prefetcher.close()
        super().close()
