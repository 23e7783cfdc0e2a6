"""Bytes that a decode step of a method moves, by context length, for one sequence of a model."""

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import NamedTuple


class Traffic(NamedTuple):
    """Bytes of one sequence and step, over all layers; names as in ``core.counts``.

    ``flash``: whole pages of a drive that would be touched (``hardware=csd``). ``weights`` are read
    once for a whole batch.
    """

    kv: float = 0.0
    index: float = 0.0
    weights: float = 0.0
    h2d: float = 0.0
    d2h: float = 0.0
    flash: float = 0.0

    @property
    def read(self) -> float:
        """Read where attention runs."""
        return self.kv + self.index


@dataclass(slots=True)
class TrafficCurve:
    """Traffic at counted contexts, linear between them; ``source`` says how it was counted."""

    points: Sequence[tuple[int, Traffic]]
    source: str
    contexts: list[int] = field(init=False)
    lines: list[tuple[int, Traffic, Traffic]] = field(init=False)  # (from, there, per token)

    def __post_init__(self) -> None:
        self.contexts = [tokens for tokens, _ in self.points]
        first = self.points[0][1]
        ends = [(0, Traffic(weights=first.weights)), *self.points]
        self.lines = [
            (
                low,
                before,
                Traffic(*[(b - a) / (high - low) for a, b in zip(before, after, strict=True)]),
            )
            for (low, before), (high, after) in pairwise(ends)
        ]

    def at(self, context: float) -> Traffic:
        """At a mean context; below the first point in proportion to it.

        ValueError beyond the last point.
        """
        place = bisect_left(self.contexts, context)
        if place == len(self.contexts):
            most = self.contexts[-1]
            raise ValueError(f"{context:g} tokens: bytes were counted up to {most} only")
        low, (kv, index, weights, h2d, d2h, flash), slope = self.lines[place]
        more = context - low
        return Traffic(  # written out: a replay asks millions of times
            kv + more * slope.kv, index + more * slope.index, weights + more * slope.weights,
            h2d + more * slope.h2d, d2h + more * slope.d2h, flash + more * slope.flash,
        )  # fmt: skip


def full_attention(kv_token_bytes: float, max_context: int) -> TrafficCurve:
    """Every key and value once, by formula. A drive reads just these pages."""
    read = float(kv_token_bytes * max_context)
    return TrafficCurve([(max_context, Traffic(kv=read, flash=read))], "formula: all K and V")
