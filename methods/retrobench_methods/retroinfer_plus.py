"""RetroInfer with a finer index of fewer bits, at the bytes of the faithful one. Ours.

Clusters of 6 instead of 16 tokens, found in the space that queries see; centroids and mean values
in 4 bits; ranks that count tokens; and the ignored clusters through one mean value.
"""

from retrobench.core.method import Needs, PromptLayer
from retrobench.core.spec import preset
from retrobench_methods.retroinfer import RetroInfer, RetroInferConfig
from retrobench_methods.retroinfer.query_space import WINDOW_TOKENS, QueryIndex


class RetroInferPlus(RetroInfer):
    """What won on real keys and values (docs/retroinfer.md), as one preset."""

    name = "retroinfer_plus"
    index_class = QueryIndex
    needs = Needs(prompt_queries=WINDOW_TOKENS)
    Config = preset(
        RetroInferConfig,
        "RetroInferPlusConfig",
        tokens_per_cluster=6,
        retrieval_frac=0.02,
        kmeans_iterations=4,
        final_assign="segment",
        index_codec="int4",
        weigh_sizes=True,
        tail=True,
    )
    index: QueryIndex

    def build(self, layer: int, prompt: PromptLayer) -> None:
        """Learn the space of a layer, then cluster in it."""
        self.index.learn(layer, prompt)
        super().build(layer, prompt)
