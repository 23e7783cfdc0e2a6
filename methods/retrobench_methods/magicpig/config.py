"""Options of MagicPIG, with the source of every default."""

from dataclasses import dataclass

from retrobench.core.shapes import KVShape
from retrobench.core.spec import layer_list, option
from retrobench.memory.placement import PlacementConfig


@dataclass(frozen=True, kw_only=True)
class MagicPigConfig(PlacementConfig):
    """Defaults of the paper (arXiv 2410.16179) and of Infini-AI-Lab/MagicPIG dc682a3."""

    bits: int = option(10, "bits of a hash code (paper: K = 10, also 9 and 8)", low=1, high=16)
    tables: int = option(150, "hash tables (paper: L = 150, also 120 and 75)", low=1, high=4096)
    min_collisions: int = option(
        2, "without a budget: tables in which a token must meet the query (paper: 2)", low=1
    )
    centre: bool = option(True, "hash keys without their mean (paper; needles are lost otherwise)")
    sink_tokens: int = option(4, "first tokens, always attended (released)", low=0)
    local_tokens: int = option(
        64, "last tokens of the prompt, always attended, as generated ones are (released)", low=0
    )
    dense_layers: tuple[int, ...] | None = layer_list(
        None,
        "layers that attend everything; null: the first and the middle one (released: 0 and 16 "
        "of 32); []: none",
    )
    seed: int = option(0, "seed of the hash functions", low=0)

    def __post_init__(self) -> None:
        if self.min_collisions > self.tables:
            raise ValueError(
                f"min_collisions={self.min_collisions} asks for more tables than there are: "
                f"use at most method.tables={self.tables}"
            )

    def dense(self, shape: KVShape) -> tuple[int, ...]:
        """Layers that attend everything."""
        if self.dense_layers is not None:
            return self.dense_layers
        return shape.layers[0], shape.layers[len(shape.layers) // 2]
