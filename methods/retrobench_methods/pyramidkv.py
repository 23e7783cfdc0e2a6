"""PyramidKV: SnapKV's votes, with more tokens in the first layers (arXiv 2406.02069)."""

from dataclasses import dataclass
from typing import Any

from retrobench.core.budget import Budget, shares_of
from retrobench.core.shapes import KVShape
from retrobench.core.spec import option
from retrobench.engine.attention.evicting import kept_tokens
from retrobench_methods._votes import VotingConfig, VotingIndex, VotingMethod


@dataclass(frozen=True, kw_only=True)
class PyramidKVConfig(VotingConfig):
    """Defaults of Zefan-Cai/KVCache-Factory c97f9d7, run_longbench.py and PyramidKVCluster."""

    window_tokens: int = option(
        8, "last tokens of the prompt: they vote, and are always kept", low=1
    )
    beta: float = option(
        20.0,
        "steepness: the last layer keeps 1/beta of the mean, window aside (1: all layers alike)",
        low=1,
    )


class PyramidIndex(VotingIndex):
    """Tokens fall from layer to layer by the same step."""

    @classmethod
    def kept(cls, config: Any, shape: KVShape, budget: Budget | None) -> list[tuple[int, ...]]:
        """Tokens by layer and row, whose mean over layers is the budget."""
        rows = []
        means = kept_tokens(config, shape, budget, config.window_tokens)
        for pad, mean in zip(shape.pad_tokens, means, strict=True):
            window = min(mean, config.window_tokens)
            free = mean - window
            rows.append([window + n for n in pyramid(free, config.beta, shape, pad + window)])
        return list(zip(*rows, strict=True))


def pyramid(mean: int, beta: float, shape: KVShape, taken: int) -> list[int]:
    """Tokens of every layer beside the window, ``mean`` on average.

    They fall from ``2 mean - mean / beta``, or all tokens that are not ``taken``, to what makes up
    for it.
    """
    layers, most = len(shape.layers), shape.prefilled_tokens - taken
    high = min(2 * mean - mean / beta, most)
    step = 2 * (high - mean) / max(1, layers - 1)
    wanted = [high - layer * step if layers > 1 else mean for layer in range(layers)]
    return shares_of(mean * layers, wanted, most)


class PyramidKV(VotingMethod):
    """As many tokens in the KV heads of a layer, fewer from layer to layer."""

    name = "pyramidkv"
    together = True
    Config = PyramidKVConfig
    index_class = PyramidIndex
