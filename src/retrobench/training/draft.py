"""A training sample before it is cut to length."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, field

Rng = random.Random
Segment = tuple[str, bool]  # text, and whether the loss counts it
END = "<|eos|>"


@dataclass(slots=True)
class Draft:
    """Parts of a sample. ``must`` pieces stand among ``filler`` in their order."""

    must: list[str]
    questions: list[list[Segment]]
    filler: list[str] = field(default_factory=list)
    head: str = ""
    joiner: str = " "


Family = Callable[[Rng, int], Draft]
