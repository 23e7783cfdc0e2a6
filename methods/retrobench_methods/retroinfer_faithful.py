"""RetroInfer with the clustering of its released code, where ours differs.

The published algorithm is the same. What differs is what the paper leaves open: the first
centroids, the edges of segments, and the step in which generated tokens are clustered.
"""

from retrobench.core.spec import preset
from retrobench_methods.retroinfer import RetroInfer, RetroInferConfig


class RetroInferFaithful(RetroInfer):
    """Clusters as microsoft/RetrievalAttention 6b1228c makes them."""

    name = "retroinfer_faithful"
    Config = preset(
        RetroInferConfig,
        "RetroInferFaithfulConfig",
        kmeans_init="raw",
        segment_edges="floor",
        stagger_updates=False,
    )
