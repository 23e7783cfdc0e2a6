"""Options of InfiniGen, with the source of every default."""

from dataclasses import dataclass

from retrobench.core.budget import Budget, row_budgets
from retrobench.core.shapes import KVShape
from retrobench.core.spec import choice, layer_list, option, share


@dataclass(frozen=True, kw_only=True)
class InfiniGenConfig:
    """Defaults of the paper (OSDI'24, arXiv 2406.19707) and of snu-comparch/InfiniGen 3754f52."""

    alpha: float = option(
        5.0,
        "without a budget: fetch keys whose speculated logit is within alpha of the head's largest "
        "(released: 4 for OPT, 5 for Llama-2)",
        low=0,
    )
    cap_frac: float = share(
        0.2, "without a budget: at most this share of the context (released: 0.2)"
    )
    count: str = choice(
        ("mean", "per_head"),
        "mean: every head fetches the mean of the heads' counts (released); per_head: its own",
    )
    partial_frac: float = share(
        0.3, "share of skewed channels kept for speculation (paper 0.3, speed code 0.2)"
    )
    channels: str = choice(
        ("paper", "speed", "accuracy"),
        "which channels: paper: largest sum of |Q| and |K| over the prompt; speed: of |Q| alone; "
        "accuracy: union of both rankings on the calibration text",
    )
    scope: str = choice(
        ("kv_head", "query_head"),
        "kv_head: one set per KV head, by its query heads' best gap to their own maximum (ours: "
        "the released code knows no GQA); query_head: one per query head",
    )
    dense_layers: tuple[int, ...] = layer_list(
        (0, 1), "layers that fetch everything (released; layer 0 cannot be predicted)"
    )
    placement: str = choice(
        ("cpu", "gpu"), "where keys and values live (paper: cpu); gpu: speculation only"
    )
    prefetch: bool = option(True, "fetch a layer while the one before it computes")
    pool_frac: float = share(1.0, "capacity of the KV pool as a share of prompt and answer")
    pool_policy: str = choice(
        ("counter", "lru", "fifo"),
        "victim of a full pool: fewest fetches, least recently fetched, or oldest",
    )
    calibration_dir: str = option("data/calibration", "folder of the files of scripts/calibrate.py")

    def is_dense(self, layer: int) -> bool:
        """Whether a layer fetches everything; the model's first one always does."""
        return layer in self.dense_layers or layer == 0


def fetched_tokens(
    config: InfiniGenConfig, shape: KVShape, budget: Budget | None
) -> tuple[int, ...]:
    """Most tokens that a row fetches per head and step, beside the newest one.

    A budget replaces ``alpha`` and ``cap_frac`` and is fetched in full.
    """
    counts = []
    for context, total in row_budgets(shape, budget):
        if total is None:
            counts.append(max(1, round(config.cap_frac * context)))
        else:
            counts.append(max(1, total - 1) if total < context else shape.max_tokens)
    return tuple(counts)


def pool_tokens(config: InfiniGenConfig, shape: KVShape) -> int:
    """Tokens per KV head that the pool holds."""
    return max(2, round(config.pool_frac * shape.max_tokens))


def num_channels(config: InfiniGenConfig, head_dim: int) -> int:
    """Channels to allocate per head; the union of two rankings may need twice the share."""
    count = max(1, round(config.partial_frac * head_dim))
    return min(head_dim, 2 * count) if config.channels == "accuracy" else count
