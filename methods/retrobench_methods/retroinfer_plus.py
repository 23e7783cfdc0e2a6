"""RetroInfer with a finer index of fewer bits, at the bytes of the faithful one. Ours.

Clusters of 6 instead of 16 tokens, found in the space that queries see; centroids and mean values
in 4 bits; ranks that count tokens; and the ignored clusters through one mean value.
"""

import torch
from retrobench_kernels.segmented_kmeans import cluster_sums, segmented_kmeans
from torch import Tensor

from retrobench.core.budget import Budget
from retrobench.core.method import Needs, PromptLayer
from retrobench.core.shapes import KVShape
from retrobench.core.spec import preset
from retrobench.memory.placement import Holder
from retrobench_methods.retroinfer import RetroInfer, RetroInferConfig
from retrobench_methods.retroinfer.vectors import vector_sums
from retrobench_methods.retroinfer.wave_index import WaveIndex

WINDOW_TOKENS = 512  # last tokens of the prompt whose queries are looked at
VALUE_WEIGHT = 0.3  # of a typical value's distance, for that of a typical key
AXES = 64  # of the joint space
GAIN, MOST_GAIN = 0.5, 2.0  # of half the variance of a cluster's logits; in nats
_SMALLEST = 1e-4  # of the largest eigenvalue: directions that no query used may matter later


class QuerySpace(Holder):
    """One linear map from a token's key and value to the joint space for every head.

    Estimating a cluster by its centroid is wrong by how far logits and values inside it differ. So
    k-means compares tokens by just that: the distance of keys in the metric of the queries' second
    moment (the expected square of the difference of two logits), and with a smaller weight the
    distance of values. A few principal axes of this joint space hold nearly all of it.

    The same metric says how much a centroid underestimates its cluster: by half the variance of the
    logits inside, for keys spread normally. Part of it is added to the logit of the cluster. It is
    an average over queries, so it costs one number.
    """

    def __init__(self, shape: KVShape) -> None:
        head = (len(shape.layers), shape.batch, shape.num_kv_heads)
        dim = shape.head_dim
        self.map_LBGDE = torch.zeros(*head, 2 * dim, min(AXES, 2 * dim), device=shape.device)
        self.metric_LBGDD = torch.zeros(*head, dim, dim, device=shape.device)

    def learn(self, i: int, row: int, k_GSD: Tensor, v_GSD: Tensor, q_HWD: Tensor) -> None:
        """The map of a layer's row, from its prompt and its last queries."""
        groups, _, dim = k_GSD.shape
        q_GWD = q_HWD.float().reshape(groups, -1, dim)
        value, axis = torch.linalg.eigh(q_GWD.mT @ q_GWD / q_GWD.shape[1])
        value = value.clamp_min(_SMALLEST * value.amax(-1, keepdim=True)).clamp_min(0)
        root_GDD = axis * value.sqrt()[:, None]
        self.metric_LBGDD[i, row] = root_GDD
        k_GSD, v_GSD = (x.float() - x.float().mean(1, keepdim=True) for x in (k_GSD, v_GSD))
        parts, maps = [], []
        plain = torch.eye(dim, device=k_GSD.device).expand(groups, dim, dim)
        for x, matrix, weight in ((k_GSD, root_GDD, 1.0), (v_GSD, plain, VALUE_WEIGHT)):
            x = x @ matrix
            norm = x.norm(dim=-1).mean(-1)[:, None, None].clamp_min(1e-12)
            parts.append(x * weight / norm)
            maps.append(matrix * weight / norm)
        joint = torch.cat(parts, -1)
        _, axis = torch.linalg.eigh(joint.mT @ joint / joint.shape[1])
        axis = axis[..., -self.map_LBGDE.shape[-1] :]
        self.map_LBGDE[i, row, :, :dim] = maps[0] @ axis[:, :dim]
        self.map_LBGDE[i, row, :, dim:] = maps[1] @ axis[:, dim:]

    def project(self, i: int, row: int, k_GSD: Tensor, v_GSD: Tensor) -> Tensor:
        """Tokens in the joint space, in the dtype of the keys."""
        dim, maps = k_GSD.shape[-1], self.map_LBGDE[i, row]
        joint = k_GSD.float() @ maps[:, :dim] + v_GSD.float() @ maps[:, dim:]
        return joint.to(k_GSD.dtype)


class QueryIndex(WaveIndex):
    """A wave index whose k-means runs in the joint space, by Euclidean distance."""

    def __init__(
        self, config: RetroInferConfig, shape: KVShape, budget: Budget | None, page_tokens: int = 1
    ) -> None:
        super().__init__(config, shape, budget, page_tokens)
        self.space = QuerySpace(shape)
        self.scale = [0.0] * len(shape.layers)
        self.gain_LBGC = torch.zeros_like(self.size_LBGC, dtype=torch.float16)

    def learn(self, layer: int, prompt: PromptLayer) -> None:
        """Look at a layer of the prompt before it is clustered."""
        assert prompt.q_BHWD is not None
        self.scale[self.slot[layer]] = prompt.args.scale
        for row, pad in enumerate(self.shape.pad_tokens):
            tokens = prompt.k_BGSD[row, :, pad:], prompt.v_BGSD[row, :, pad:]
            seen = min(prompt.q_BHWD.shape[2], tokens[0].shape[1])
            self.space.learn(self.slot[layer], row, *tokens, prompt.q_BHWD[row, :, -seen:])

    def cluster(
        self, i: int, row: int, k_GSD: Tensor, v_GSD: Tensor, clusters: int, segments: int
    ) -> tuple[Tensor, Tensor]:
        """Means of keys, by clusters of the joint space."""
        config = self.config
        _, cluster = segmented_kmeans(
            self.space.project(i, row, k_GSD, v_GSD), clusters, segments,
            config.kmeans_iterations, config.final_assign, config.kmeans_init,
            config.segment_edges, "euclidean",
        )  # fmt: skip
        nothing = torch.zeros(len(k_GSD), k_GSD.shape[-1], device=k_GSD.device)
        total, size = cluster_sums(k_GSD, nothing, cluster, clusters)
        return total / size.clamp_min(1)[..., None], cluster

    def note(
        self, at: tuple, k_GSD: Tensor, v_GSD: Tensor, centroid_GCD: Tensor, cluster_GS: Tensor
    ) -> None:
        """How much the centroids of new clusters underestimate them."""
        i, row, *_ = at
        spread = cluster_GS[..., None].expand_as(k_GSD)
        left_GSD = (k_GSD.float() - centroid_GCD.gather(1, spread)) @ self.space.metric_LBGDD[
            i, row
        ]
        square_GS1 = left_GSD.square().sum(-1, keepdim=True) * self.scale[i] ** 2
        ones_GS1, clusters = torch.ones_like(square_GS1), centroid_GCD.shape[1]
        total, size = (vector_sums(x, cluster_GS, clusters) for x in (square_GS1, ones_GS1))
        half_variance_GC = (total / size.clamp_min(1))[..., 0] / 2
        self.gain_LBGC[at] = (GAIN * half_variance_GC).clamp_max(MOST_GAIN).half()

    def gain(self, i: int) -> Tensor:
        """What is added to the logits of a layer's clusters, ``BGC``."""
        return self.gain_LBGC[i]


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
