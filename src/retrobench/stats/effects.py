"""Main effects and two-way interactions of a sweep's options, paired over samples.

The response is a table with a row per cell (its index: the value of every option) and a column per
sample that all cells answered.
"""

from dataclasses import dataclass
from itertools import combinations
from typing import Any

import pandas as pd

from retrobench.stats.intervals import mean_interval


@dataclass(frozen=True, slots=True)
class Effect:
    """How far a level (or pair of levels) moves the response, with its 95% interval and samples."""

    factors: tuple[str, ...]
    levels: tuple[Any, ...]
    value: float
    low: float
    high: float
    samples: int


def main_effects(response: pd.DataFrame) -> list[Effect]:
    """Mean at a level minus the mean over all cells, for every level of every option."""
    return [
        Effect((factor,), (level,), *mean_interval(samples - response.mean()), len(samples))
        for factor in response.index.names
        for level, samples in _means(response, factor).iterrows()
    ]


def interactions(response: pd.DataFrame) -> list[Effect]:
    """What a pair of levels adds beyond their main effects, for pairs of a full factorial.

    Pairs of options with missing combinations are left out: they cannot be told apart.
    """
    found = []
    for pair in combinations(response.index.names, 2):
        both, first, second = (_means(response, by) for by in (list(pair), *pair))
        if len(both) < len(first) * len(second):
            continue
        for (a, b), samples in both.iterrows():
            extra = samples - first.loc[a] - second.loc[b] + response.mean()
            found.append(Effect(pair, (a, b), *mean_interval(extra), len(extra)))
    return found


def _means(response: pd.DataFrame, by: str | list[str]) -> pd.DataFrame:
    """Mean of every sample at each level, or pair of levels."""
    return response.groupby(level=by, sort=False).mean()
