"""Main effects and two-way interactions of a sweep's options, paired over samples."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np

from retrobench.stats.intervals import mean_interval


@dataclass(frozen=True, slots=True)
class Effect:
    """How far one level (or pair of levels) moves the response, with its 95% interval."""

    factors: tuple[str, ...]
    levels: tuple[Any, ...]
    value: float
    low: float
    high: float


def main_effects(cells: Sequence[Mapping[str, Any]], response: np.ndarray) -> list[Effect]:
    """Mean at a level minus the mean over all cells, for every level of every varying factor.

    ``cells``: the factors of each cell; ``response[cell, sample]`` on samples that all answered.
    """
    grand = response.mean(0)
    found = []
    for factor, levels in _factors(cells).items():
        for level in levels:
            picked = response[[cell[factor] == level for cell in cells]].mean(0)
            found.append(Effect((factor,), (level,), *mean_interval(picked - grand)))
    return found


def interactions(cells: Sequence[Mapping[str, Any]], response: np.ndarray) -> list[Effect]:
    """What a pair of levels adds beyond their main effects, for pairs of a full factorial.

    Pairs of factors with missing combinations are left out: they cannot be told apart.
    """
    grand, factors = response.mean(0), _factors(cells)
    found = []
    for a, b in combinations(factors, 2):
        both = {(cell[a], cell[b]) for cell in cells}
        if len(both) < len(factors[a]) * len(factors[b]):
            continue
        for x in factors[a]:
            at_x = response[[cell[a] == x for cell in cells]].mean(0)
            for y in factors[b]:
                at_y = response[[cell[b] == y for cell in cells]].mean(0)
                pair = response[[cell[a] == x and cell[b] == y for cell in cells]].mean(0)
                extra = pair - at_x - at_y + grand
                found.append(Effect((a, b), (x, y), *mean_interval(extra)))
    return found


def _factors(cells: Sequence[Mapping[str, Any]]) -> dict[str, list[Any]]:
    """Factors with two levels or more, and their levels in the order of the cells."""
    names = cells[0] if cells else {}
    levels = {name: list(dict.fromkeys(cell[name] for cell in cells)) for name in names}
    return {name: found for name, found in levels.items() if len(found) > 1}
