"""Options of HeteroCache, with the source of every default, and how many tokens a head holds."""

from dataclasses import dataclass
from math import ceil

from retrobench.core.budget import Budget, row_budgets, shares_of
from retrobench.core.shapes import KVShape
from retrobench.core.spec import choice, context_share, option, require_odd
from retrobench_methods.heterocache.roles import Roles

STABILITY_EPS = 1e-6  # released: keeps the inverse of a stability of 0 finite


@dataclass(frozen=True, kw_only=True)
class HeteroCacheConfig:
    """Defaults of ponytaill/HeteroCache 01dc7fe (arXiv 2601.13684)."""

    keep_frac: float = context_share(
        0.5, "share of the context that a KV head attends on average, where no budget is given"
    )
    full_heads: str = choice(
        ("keep", "top"),
        "pivots and volatile heads: keep: they hold and attend everything (paper); top: they hold "
        "their best tokens and look at everything every `steps` steps (ours, for small budgets)",
    )
    similarity_at: str = choice(
        ("prefill", "decode_median"),
        "where heads must attend alike to be similar: after the calibration text's prompt "
        "(released), or in the median decode step (paper)",
    )
    similar: float = option(
        0.5, "overlap from which two heads of a layer are similar", low=0, high=1
    )
    stable: float = option(0.5, "stability from which a head is an anchor", low=0, high=1)
    steps: int = option(5, "decode steps between two looks at the pivots", low=1)
    drift: float = option(
        0.5, "satellites reload where a pivot's median overlap is below this", low=0, high=1
    )
    pool_tokens: int = option(5, "tokens whose attention is averaged, an odd number", low=1)
    placement: str = choice(
        ("auto", "gpu", "pinned", "cpu"),
        "where the copy of the prompt is from which heads reload: auto, pinned host memory for a "
        "model on a GPU and cpu otherwise; gpu, the model's device",
    )
    prefetch: bool = option(True, "look and reload beside the model")
    calibration_dir: str = option("data/calibration", "folder of the files of scripts/calibrate.py")

    def __post_init__(self) -> None:
        require_odd(pool_tokens=self.pool_tokens)


def mean_tokens(
    config: HeteroCacheConfig, shape: KVShape, budget: Budget | None
) -> tuple[int, ...]:
    """Prompt tokens that a KV head of each row holds on average."""
    pairs = zip(shape.prefilled, row_budgets(shape, budget), strict=True)
    return tuple(
        min(tokens, max(1, round(config.keep_frac * context)) if total is None else total)
        for tokens, (context, total) in pairs
    )


def head_tokens(
    config: HeteroCacheConfig, shape: KVShape, budget: Budget | None, roles: Roles
) -> tuple[list[list[list[int]]], tuple[int, ...]]:
    """Prompt tokens of every head, ``count_LBG``, and of a set that is compared, ``base_B``.

    Anchors and satellites share what the others leave by the inverse of their stability. The heads
    of a row add up to its budget. ValueError for a budget that the other heads use up alone.
    """
    groups = shape.num_kv_heads
    full = [roles.full(i, g) for i in range(len(shape.layers)) for g in range(groups)]
    stability = [value for row in roles.stability_LG for value in row]
    weights = [
        1 / (value + STABILITY_EPS) for value, f in zip(stability, full, strict=True) if not f
    ]
    num_full, num_rest, by_row, base_B = sum(full), len(weights), [], []
    for context, mean in zip(shape.prefilled, mean_tokens(config, shape, budget), strict=True):
        own = mean if config.full_heads == "top" else context
        left = mean * len(full) - num_full * own
        if left < num_rest and mean < context:
            floor = ceil((num_full * context + num_rest) / len(full))
            asked = f"budget: {budget}" if budget else f"method.keep_frac={config.keep_frac:g}"
            raise ValueError(
                f"{asked} is {mean} tokens of a context of {context}, but {num_full} of "
                f"{len(full)} KV heads (pivots and volatile ones) attend everything: the least is "
                f"{floor} tokens ({num_full / len(full):.1%} of the context and one token for each "
                "other head); raise it, or use method.full_heads=top"
            )
        shares = iter(shares_of(left, weights, context))
        by_row.append([own if f else next(shares) for f in full])
        base_B.append(left // num_rest if num_rest and config.full_heads == "keep" else mean)
    layers = range(len(shape.layers))
    return [[row[i * groups : (i + 1) * groups] for row in by_row] for i in layers], tuple(base_B)
