"""Options of PQCache, with the source of every default."""

from dataclasses import dataclass

from retrobench.core.budget import Budget, row_budgets
from retrobench.core.shapes import KVShape
from retrobench.core.spec import context_share, option, share
from retrobench.memory.placement import POLICIES, PlacementConfig


@dataclass(frozen=True, kw_only=True)
class PQCacheConfig(PlacementConfig):
    """Defaults of the paper (arXiv 2407.12820) and of HugoZHL/PQCache 0b74e12."""

    kept_frac: float = context_share(
        0.1, "share of the context attended beside the sinks (released scripts: 0.1)"
    )
    recent_frac: float = share(
        0.5, "share of that in the recent window; the rest is retrieved (released)"
    )
    sink_tokens: int = option(32, "first tokens, always attended (released)", low=0)
    subvectors: int = option(
        2, "parts that a key is cut into (released: 2; paper: 4 for long contexts)", low=1
    )
    bits: int = option(
        6, "bits of a part's code: 2^bits centroids (released: 6; paper: 8 for long)", low=1, high=8
    )
    iterations: int = option(
        10, "k-means iterations (ours; released: 3 to 300, as time allows)", low=1
    )
    page_tokens: int = option(128, "tokens per block of the cache (released)", low=1, high=1024)
    eviction: str = option(
        "lfu", "which block leaves the cache (released: lfu; others are ours)", choices=POLICIES
    )
    cache_frac: float = share(
        0.125, "share of the KV cache that the block cache holds (released: 4096 tokens)"
    )

    def part_dim(self, head_dim: int) -> int:
        """Channels of a sub-vector."""
        if head_dim % self.subvectors:
            raise ValueError(
                f"method.subvectors={self.subvectors}: keys of {head_dim} channels cannot be cut "
                "into as many equal parts; use a divisor"
            )
        return head_dim // self.subvectors


def zones(config: PQCacheConfig, shape: KVShape, budget: Budget | None) -> list[tuple[int, int]]:
    """(recent, retrieved) tokens of each row, beside the sinks; fixed by the prompt's length."""
    found, sinks = [], config.sink_tokens
    why = f"the first {sinks} are always attended (method.sink_tokens)"
    for context, total in row_budgets(shape, budget, sinks, why):
        if total is None:
            rest = max(1, round(config.kept_frac * (context - sinks)))
        else:
            rest = total - sinks if total < context else 2 * shape.max_tokens
        recent = max(1, round(config.recent_frac * rest))
        found.append((recent, rest - recent))
    return found
