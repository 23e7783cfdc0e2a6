"""MagicPIG: tokens sampled by locality-sensitive hashing, each weighted by how likely it was.

arXiv 2410.16179. A token that meets the query in enough hash tables is attended, and its logit is
lowered by the log of the probability of that. So a softmax over the sample estimates the one over
all tokens.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from torch import Tensor

from retrobench.core.method import AttentionArgs
from retrobench.core.shapes import KVShape
from retrobench.engine.attention.selective import SelectiveMethod
from retrobench.memory.selection import Selection
from retrobench_methods.magicpig.config import MagicPigConfig
from retrobench_methods.magicpig.tables import HashTables, Sampled


class MagicPig(SelectiveMethod):
    """A weighted sample of each query head, beside a static zone; some layers are dense."""

    name = "magicpig"
    index_class = HashTables
    memory_knob = "cache_frac"
    Config = MagicPigConfig
    index: HashTables

    @classmethod
    def dense_layers(cls, config: Any, shape: KVShape) -> tuple[int, ...]:
        """Those of the option, or the first and the middle one."""
        return config.dense(shape)

    def attend(
        self, layer: int, q_BHTD: Tensor, selection: Selection, args: AttentionArgs
    ) -> Tensor:
        """As the template does, with weights that need the keys of the sample."""
        if not isinstance(selection, Sampled):
            return super().attend(layer, q_BHTD, selection, args)
        with self.probe.span("gather"):
            k_BHRD, v_BHRD = self.store.gather(layer, selection.token_BGR)
        weight_BHR = self.index.log_weight(layer, q_BHTD, k_BHRD, selection)
        selection = replace(selection, log_weight_BGR=weight_BHR)
        return self.attend_tokens(layer, q_BHTD, k_BHRD, v_BHRD, selection, args)

    def stats(self) -> Mapping[str, Any]:
        """Layers that attend everything."""
        return {"dense_layers": list(self.config.dense(self.shape))}
