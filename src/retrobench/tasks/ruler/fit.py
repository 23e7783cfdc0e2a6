"""Fits a prompt to a length: as many haystack units as the budget takes.

The official generator drops a whole step when a sample is one token too long; here the search goes
down to single units, so prompts use at least 95% of the length wherever a unit is that small.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

T = TypeVar("T")

ENOUGH = 0.985  # of the budget: good enough to stop searching
_MAX_PROBES = 60


@dataclass(slots=True)
class Pace:
    """Tokens per unit and fixed tokens, as learnt from the probes so far."""

    per_unit: float = 0.0
    fixed: float = 0.0


def fit(
    make: Callable[[int], T],
    count: Callable[[T], int],
    limit: int,
    pace: Pace,
    what: str,
    most: int | None = None,
) -> T:
    """The largest ``make(units)`` found with ``count <= limit``.

    ``most`` bounds the units (documents at hand). ValueError if one unit does not fit.
    """
    if not pace.per_unit:
        small, large = count(make(4)), count(make(24))
        pace.per_unit = max(0.1, (large - small) / 20)
        pace.fixed = small - 4 * pace.per_unit
    fits, too_many = 0, (most + 1 if most else None)
    best: T | None = None
    units = max(1, int((0.993 * limit - pace.fixed) / pace.per_unit))
    for _ in range(_MAX_PROBES):
        if too_many is not None:
            units = min(units, too_many - 1)
        if units <= fits:
            break
        candidate = make(units)
        tokens = count(candidate)
        pace.per_unit = max(0.1, (tokens - pace.fixed) / units)
        if tokens <= limit:
            best, fits = candidate, units
            if tokens >= ENOUGH * limit:
                break
            units += max(1, int((0.995 * limit - tokens) / pace.per_unit))
        else:
            too_many = units
            units -= max(1, -int((0.995 * limit - tokens) // pace.per_unit))
            units = max(units, (fits + too_many) // 2 if fits else 1)
        if too_many is not None and too_many - fits <= 1:
            break
    if best is None:
        raise ValueError(f"{what}: the smallest prompt does not fit {limit} tokens; ask for more")
    return best
