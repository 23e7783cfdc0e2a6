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
AIM = 0.993  # where the first guess lands, so that small errors of the pace stay inside
_MAX_PROBES = 60
_LEAST = 0.01  # tokens per unit, at least: keeps steps finite


@dataclass(frozen=True, slots=True)
class Pace:
    """Tokens per unit and fixed tokens."""

    per_unit: float
    fixed: float

    def units(self, tokens: float) -> int:
        """Units that make about ``tokens`` tokens."""
        return max(1, int((tokens - self.fixed) / self.per_unit))


def measured(make: Callable[[int], T], count: Callable[[T], int], limit: int, unit: int) -> Pace:
    """The pace of a maker near ``limit``; ``unit`` units are about one line."""
    small, large = 4 * unit, 24 * unit
    tokens = count(make(small))
    per_unit = max(_LEAST, (count(make(large)) - tokens) / (large - small))
    fixed = tokens - small * per_unit
    units = Pace(per_unit, fixed).units(AIM * limit)
    if units > 2 * large:  # far from the small probes: look again where it matters
        per_unit = max(_LEAST, (count(make(units)) - fixed) / units)
    return Pace(per_unit, fixed)


def fit(
    make: Callable[[int], T], count: Callable[[T], int], limit: int, pace: Pace, what: str
) -> tuple[int, T]:
    """Units and the largest ``make(units)`` found with ``count <= limit``.

    With a good pace the first guess is taken. ValueError if one unit does not fit.
    """
    fits, too_many = 0, None
    best: T | None = None
    per_unit = pace.per_unit
    units = pace.units(AIM * limit)
    for _ in range(_MAX_PROBES):
        candidate = make(units)
        tokens = count(candidate)
        per_unit = max(_LEAST, (tokens - pace.fixed) / units)
        step = max(1, int(abs(0.995 * limit - tokens) / per_unit))
        if tokens <= limit:
            best, fits = candidate, units
            if tokens >= ENOUGH * limit:
                break
            units += step
        else:
            too_many = units
            units = max(units - step, 1)
        if too_many is not None:
            if too_many - fits <= 1:
                break
            if not fits < units < too_many:
                units = (fits + too_many) // 2
    if best is None:
        raise ValueError(f"{what}: the smallest prompt does not fit {limit} tokens; ask for more")
    return fits, best
