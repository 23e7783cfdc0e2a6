"""Options of ShadowKV, with the source of every default."""

from dataclasses import dataclass

from retrobench.core.budget import Budget
from retrobench.core.shapes import KVShape
from retrobench.core.spec import context_share, option
from retrobench.memory.placement import PLACEMENTS

OUTLIERS_PER_CHUNK = 24 * 8 / 1024  # outlier chunks per selected chunk (released)


@dataclass(frozen=True, kw_only=True)
class ShadowKVConfig:
    """Defaults of the paper (arXiv 2410.21465) and of ByteDance-Seed/ShadowKV e51904c."""

    rank: int = option(
        160, "rank of the keys before their rotation, all KV heads together (paper)", low=1
    )
    chunk_tokens: int = option(8, "tokens of a chunk, which one landmark stands for (paper)", low=1)
    retrieval_frac: float = context_share(
        0.0156, "without a budget: share of the context in selected chunks (paper: 1.56%)"
    )
    outlier_chunks: int | None = option(
        None,
        "chunks per KV head that their landmark fits worst, always attended; null: 24 for every "
        "1024 selected tokens (released, 48 in the paper)",
        low=0,
    )
    local_chunks: int = option(
        4, "last chunks of the prompt, always attended, as generated tokens are (paper)", low=0
    )
    placement: str = option(
        "auto",
        "where the prompt's values live: gpu, the model's device; pinned or cpu, host memory "
        "(paper); auto: pinned for a model on a GPU, else cpu",
        choices=PLACEMENTS,
    )

    reuse: bool = option(
        True,
        "chunks that the step before selected stay on the device: their values are not fetched, "
        "and their keys not rebuilt, again (paper and released code)",
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Zones:
    """Chunks of one row: candidates for landmarks, and how many are outliers and selected.

    The ``tail`` are the prompt's last tokens, which are kept exactly.
    """

    chunks: int
    outliers: int
    selected: int
    tail: int


def zones(config: ShadowKVConfig, shape: KVShape, budget: Budget | None) -> list[Zones]:
    """Of each row; ValueError for a budget that outliers and tail use up."""
    return [_zones(config, shape, budget, context) for context in shape.contexts]


def _zones(config: ShadowKVConfig, shape: KVShape, budget: Budget | None, context: int) -> Zones:
    size = config.chunk_tokens
    chunks = max(0, context // size - config.local_chunks)
    tail, fixed = context - chunks * size, config.outlier_chunks
    chunks = min(chunks, (context - shape.tail_tokens) // size)  # of what is prefilled
    if budget is None:
        wanted = max(1, round(config.retrieval_frac * context / size))
        outliers = round(OUTLIERS_PER_CHUNK * wanted) if fixed is None else fixed
    else:
        total = budget.tokens(context, shape.kv_bytes_per_token)
        if total >= context:
            return Zones(chunks=0, outliers=0, selected=0, tail=context)
        free = (total - tail) // size
        wanted = round(free / (1 + OUTLIERS_PER_CHUNK)) if fixed is None else free - fixed
        outliers = free - wanted
        if wanted < 1:
            floor = min(context, tail + size * (1 + (fixed or 0)))
            raise ValueError(
                f"budget: {budget} is {total} tokens of a context of {context}, but the last "
                f"chunks (method.local_chunks), the outliers (method.outlier_chunks) and one chunk "
                f"of {size} take {floor}; raise the budget or lower these options"
            )
    outliers = min(outliers, chunks)
    return Zones(
        chunks=chunks,
        outliers=outliers,
        selected=min(wanted, chunks - outliers),
        tail=context - chunks * size,
    )
