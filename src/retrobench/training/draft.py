"""A training sample before it is cut to length."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple

Rng = random.Random
END = "<|eos|>"


class Segment(NamedTuple):
    """A part of a question or of its answer."""

    text: str
    counts: bool  # whether the loss counts it
    instead: tuple[str, ...] = ()  # texts whose beginning would be as right here


@dataclass(slots=True)
class Draft:
    """Parts of a sample. ``must`` pieces stand among ``filler`` in their order."""

    must: list[str]
    questions: list[list[Segment]]
    filler: list[str] = field(default_factory=list)
    head: str = ""
    joiner: str = " "


Family = Callable[[Rng, int], Draft]
