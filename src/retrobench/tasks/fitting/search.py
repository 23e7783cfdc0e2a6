"""Finds how many haystack units fill a prompt's token limit.

The official generator of RULER drops a whole step when a sample is one token too long. Here the
search goes down to single units, so prompts use at least 95% of the length wherever a unit is that
small.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

T = TypeVar("T")

MIN_FILL = 0.985  # share of the limit at which the search stops
TARGET_FILL = 0.993  # where the first guess lands, so that small errors of the estimate stay inside
_NEXT_FILL = 0.995  # where the later guesses land
_MAX_PROBES = 60
_MIN_PER_UNIT = 0.01  # tokens per unit: keeps the steps finite
_PROBE_UNITS = 16  # per token of the limit: whatever makes no tokens by then never will


@dataclass(frozen=True, slots=True)
class TokensPerUnit:
    """Estimate of a prompt's length: ``fixed + per_unit * units`` tokens."""

    per_unit: float
    fixed: float

    def units(self, tokens: float) -> int:
        """Units that make about ``tokens`` tokens."""
        return max(1, int((tokens - self.fixed) / self.per_unit))


def estimate(
    make: Callable[[int], T], count: Callable[[T], int], limit: int, unit: int
) -> TokensPerUnit:
    """Measures two small prompts, and one near ``limit``. ``unit`` units are about one line.

    ValueError if a prompt does not grow with its text.
    """
    small, large = 4 * unit, 24 * unit
    tokens = count(make(small))
    per_unit = (count(make(large)) - tokens) / (large - small)
    if per_unit < _MIN_PER_UNIT and tokens <= limit:  # documents that must be there are longer
        far = large + _PROBE_UNITS * limit
        found = count(make(far))
        if found - tokens < _MIN_PER_UNIT * far:
            raise _stuck(far, found, limit)
    per_unit = max(_MIN_PER_UNIT, per_unit)
    fixed = tokens - small * per_unit
    units = TokensPerUnit(per_unit, fixed).units(TARGET_FILL * limit)
    if units > 2 * large:  # far from the small prompts: measure where it matters
        per_unit = max(_MIN_PER_UNIT, (count(make(units)) - fixed) / units)
    return TokensPerUnit(per_unit, fixed)


def fill(
    make: Callable[[int], T],
    count: Callable[[T], int],
    limit: int,
    tokens_per_unit: TokensPerUnit,
    name: str,
) -> tuple[int, int, T]:
    """(units, tokens, ``make(units)``) of the largest prompt found with ``count <= limit``.

    With a good estimate the first guess is taken. ValueError if one unit does not fit, or if no
    number of units fills the limit.
    """
    fits, filled, too_many = 0, 0, None
    best: T | None = None
    units = tokens_per_unit.units(TARGET_FILL * limit)
    for _ in range(_MAX_PROBES):
        candidate = make(units)
        tokens = count(candidate)
        per_unit = max(_MIN_PER_UNIT, (tokens - tokens_per_unit.fixed) / units)
        step = max(1, int(abs(_NEXT_FILL * limit - tokens) / per_unit))
        if tokens <= limit:
            best, fits, filled = candidate, units, tokens
            if tokens >= MIN_FILL * limit:
                break
            if units * _MIN_PER_UNIT > limit:
                raise _stuck(units, tokens, limit)
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
        raise ValueError(f"{name}: the smallest prompt does not fit {limit} tokens; ask for more")
    return fits, filled, best


def _stuck(units: int, tokens: int, limit: int) -> ValueError:
    return ValueError(
        f"{units} units of text make a prompt of {tokens} tokens, and {limit} are asked for. "
        "Either the chat template leaves out the message (use another model.chat_template, or "
        "model.chat=false), or the tokenizer does not know the text (check model.tokenizer)"
    )
