"""Options of RetroInfer and the sizes that follow from them (paper 5.1, released config.py)."""

import math
from dataclasses import dataclass

import torch
from retrobench_kernels.codes import SIDE

from retrobench.core.budget import Budget
from retrobench.core.shapes import KVShape
from retrobench.core.spec import choice, context_share, option
from retrobench.memory.codec import CODECS
from retrobench.memory.placement import PLACEMENTS, PlacementConfig, ResolvedPlacement


@dataclass(frozen=True, kw_only=True)
class RetroInferConfig(PlacementConfig):
    """Defaults reproduce the released implementation (``docs/retroinfer.md`` has every source)."""

    num_clusters: int | None = option(
        None,
        "clusters (centroids) per KV head over the prompt; null: context / tokens_per_cluster",
        low=1,
    )
    tokens_per_cluster: int = option(16, "mean cluster size", low=1, high=4096)
    segment_tokens: int = option(8192, "k-means runs inside segments of this many tokens", low=64)
    kmeans_iterations: int = option(10, "assignments, the last one included", low=1, high=100)
    final_assign: str = choice(
        ("global", "segment"),
        "last assignment over all centroids (released code) or within the segment (paper text)",
    )
    kmeans_init: str = choice(
        ("unit", "raw"),
        "first centroids: unit, normalised keys that span each segment; raw, keys as they are at "
        "the middles of equal stretches (released code)",
        added=True,
    )
    segment_edges: str = choice(
        ("even", "floor"),
        "even: near-equal segments that cover all tokens; floor: equal ones, rounded down, whose "
        "rest joins in the last assignment (released code)",
        added=True,
    )
    retrieval_frac: float = context_share(0.018, "share of clusters attended exactly")
    estimation_frac: float = option(
        0.232, "share of clusters attended through their centroid", low=0, high=1
    )
    sink_tokens: int = option(4, "first tokens, always attended exactly", low=0)
    local_tokens: int = option(64, "last tokens, always attended exactly", low=1)
    update_tokens: int = option(
        1024, "generated tokens that form a new segment of the index", low=16
    )
    stagger_updates: bool = option(
        True,
        "layer n forms its segment n steps later, so that no step carries all layers' k-means; "
        "false: all layers in the same step (released code)",
    )
    placement: str = option(
        "auto",
        "where clustered keys and values live: gpu, the model's device; pinned or cpu, "
        "page-locked or pageable host memory; auto, pinned for a model on a GPU and cpu otherwise",
        choices=PLACEMENTS,
    )
    index_codec: str = option(
        "none",
        "ours: centroids and values of clusters as they are (none), or in 8 or 4 bits",
        choices=CODECS,
        added=True,
    )
    weigh_sizes: bool = option(
        False,
        "ours: a cluster counts for all of its tokens, in its rank and in the retrieved share",
        added=True,
    )
    tail: bool = option(
        False, "ours: clusters beyond the estimation zone weigh in through one mean value"
    )
    second_order: bool = option(
        False, "ours: correct estimated weights by the spread of keys inside a cluster"
    )
    int4_values: bool = option(
        False, "ours: estimate every cluster, with mean values kept in 4 bits"
    )
    error_tolerance: float = option(
        0.0,
        "ours: retrieve fewer clusters while a bound on the relative output error that estimating "
        "the others adds stays below this; 0: always retrieve all",
        low=0,
    )
    overlap: bool = option(
        False, "ours: copy missed pages into the cache while everything else is attended"
    )
    async_update: bool = option(
        False,
        "copy missed pages into the cache after a layer's attention, while later layers compute "
        "(paper 4.3)",
        added=True,
    )
    prefetch_frac: float = option(
        0.0,
        "ours: copy the pages of the clusters ranked next into the cache, this share of the "
        "retrieved number of them",
        low=0,
        high=10,
    )

    @property
    def fills_aside(self) -> bool:
        """Whether something else than the step itself copies pages into the cache."""
        return self.overlap or self.async_update or self.prefetch_frac > 0

    @property
    def keeps_covariance(self) -> bool:
        """Whether the index measures how far keys are from their centroid."""
        return self.second_order or self.error_tolerance > 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Sizes:
    """Clusters that are formed at a time, and how many more a step retrieves and estimates.

    ``retrieved_tokens`` limits what is retrieved where clusters count for their tokens.
    """

    clusters: int
    segments: int
    retrieved: int
    estimated: int
    retrieved_tokens: int


def num_indexed(config: RetroInferConfig, context_tokens: int) -> int:
    """Prompt tokens that the index covers; 0 where the context is too short for one segment.

    The released code keeps a context below sinks + local + update segment dense.
    """
    steady = config.sink_tokens + config.local_tokens
    return 0 if context_tokens < steady + config.update_tokens else context_tokens - steady


def num_clusters(config: RetroInferConfig, context_tokens: int) -> tuple[int, int]:
    """(clusters, segments) of a prompt.

    Segments are context / segment_tokens, rounded; clusters the multiple of lcm(8, segments)
    nearest to context / tokens_per_cluster, unless ``num_clusters`` says otherwise. As in the
    released code, the quotient is rounded first, and the smaller of two nearest multiples is taken.
    """
    indexed = num_indexed(config, context_tokens)
    if indexed == 0:
        return 0, 0
    segments = max(1, round(context_tokens / config.segment_tokens))
    if config.num_clusters is not None:
        if config.num_clusters > indexed:
            raise ValueError(
                f"method.num_clusters={config.num_clusters} is larger than the {indexed} tokens "
                "that the index covers; use fewer clusters or a longer context"
            )
        return config.num_clusters, min(segments, config.num_clusters)
    unit = math.lcm(8, segments)
    wanted = max(unit, round(context_tokens / config.tokens_per_cluster))
    clusters = (wanted + (unit - 1) // 2) // unit * unit
    return min(clusters, indexed), segments


def sizes(
    config: RetroInferConfig, context_tokens: int, budget: Budget | None, kv_bytes_per_token: int
) -> tuple[Sizes, Sizes]:
    """Of a row's prompt, and of each segment of generated tokens.

    A budget replaces ``retrieval_frac`` (static zone included).
    """
    indexed, frac = num_indexed(config, context_tokens), config.retrieval_frac
    if budget is not None:
        if budget.top_p is not None and config.error_tolerance:
            raise ValueError(
                f"budget: {budget} and method.error_tolerance both say how many clusters a step "
                "retrieves; use method.error_tolerance=0"
            )
        total = budget.tokens(context_tokens, kv_bytes_per_token)
        static = config.sink_tokens + config.local_tokens
        if total <= static and total < context_tokens:
            raise ValueError(
                f"budget: {budget} is {total} tokens, but RetroInfer's steady zone alone takes "
                f"{static} (method.sink_tokens + method.local_tokens)"
            )
        frac = 1.0 if total >= context_tokens else (total - static) / max(1, indexed)

    def of(tokens: int, clusters: int, segments: int) -> Sizes:
        retrieved = min(clusters, max(1, round(frac * clusters)))
        return Sizes(
            clusters=clusters,
            segments=segments,
            retrieved=retrieved,
            estimated=min(clusters - retrieved, round(config.estimation_frac * clusters)),
            retrieved_tokens=math.ceil(frac * tokens),
        )

    prompt = of(indexed, *num_clusters(config, context_tokens))
    return prompt, of(config.update_tokens, update_clusters(config), segments=1)


def update_clusters(config: RetroInferConfig) -> int:
    """Clusters that a segment of generated tokens adds."""
    return max(1, config.update_tokens // config.tokens_per_cluster)


def capacity(config: RetroInferConfig, shape: KVShape) -> int:
    """Clusters to allocate per row and head: the prompt's and every possible update's.

    Updates also take the prompt's last tokens, where a protocol ends the prefill early. One more
    segment than the lengths say, because a plan does not know the length of a question. Codes are
    kept for whole groups of clusters, wherever they live.
    """
    largest, steady = 0, config.sink_tokens + config.local_tokens
    for pad, context in zip(shape.pad_tokens, shape.contexts, strict=True):
        clusters, _ = num_clusters(config, context)
        indexed = num_indexed(config, context - shape.tail_tokens)
        later = shape.max_tokens - pad - indexed - steady
        updates = max(0, later // config.update_tokens)
        largest = max(
            largest, clusters + update_clusters(config) * (updates + (clusters + updates > 0))
        )
    return largest if config.index_codec == "none" else -(-largest // SIDE) * SIDE


def steady_tokens(config: RetroInferConfig, shape: KVShape) -> int:
    """Tokens that the steady zone must hold: sinks, local window and what waits for an update."""
    tokens = config.sink_tokens + config.local_tokens + config.update_tokens
    tokens += len(shape.layers) if config.stagger_updates else 1
    return min(tokens, shape.max_tokens)


def pool_tokens(config: RetroInferConfig, shape: KVShape, page_tokens: int) -> int:
    """Positions of the cluster-ordered pool per row and head: clusters are packed.

    A page is copied whole, so that the last one may reach beyond the last token.
    """
    tokens = shape.max_tokens - config.sink_tokens - config.local_tokens
    return -(-(max(1, tokens) + page_tokens - 1) // page_tokens) * page_tokens


def resolve_placement(config: RetroInferConfig, shape: KVShape) -> ResolvedPlacement:
    """Where things live; ValueError for options that contradict each other."""
    placement = ResolvedPlacement.of(config, shape.device)
    if placement.place == "cpu" and torch.device(shape.device).type == "cuda":
        raise ValueError(
            "method.placement=cpu: kernels on a GPU read page-locked memory only; use "
            "method.placement=pinned"
        )
    if config.int4_values and config.tail:
        raise ValueError(
            "method.int4_values estimates every cluster, which leaves no tail; "
            "use method.tail=false"
        )
    if config.int4_values and config.index_codec != "none":
        raise ValueError(
            f"method.index_codec={config.index_codec} already keeps values in few bits; use "
            "method.int4_values=false (with method.estimation_frac=1 every cluster is estimated)"
        )
    if config.fills_aside and not placement.cached:
        raise ValueError(
            "method.overlap, method.async_update and method.prefetch_frac fill a cache, and there "
            "is none; use method.cache=host or device"
        )
    if config.async_update and (config.overlap or config.prefetch_frac):
        raise ValueError(
            "method.async_update has the thread that method.overlap and method.prefetch_frac "
            "need; use one of them, or method.async_update=false"
        )
    return placement
