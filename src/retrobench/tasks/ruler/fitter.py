"""Drafts of the right length for many samples, in threads, with what earlier runs found out."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass

from retrobench.core.task import Prompt
from retrobench.tasks.building import Units
from retrobench.tasks.ruler.draft import Draft, Maker, measure
from retrobench.tasks.ruler.fit import Pace, fit, measured


@dataclass(frozen=True, slots=True, kw_only=True)
class Group:
    """Samples alike but for their random draws: they share a pace and a file of known units.

    ``key`` identifies builder, tokenizer, data and options; ``example`` makes a maker of the same
    kind that belongs to no sample, so that a sample never depends on another.
    """

    key: str
    limit_tokens: int
    example: Callable[[], Maker]
    unit: int = 1


class Fitter:
    """Fits drafts for one prompt builder."""

    def __init__(self, prompt: Prompt) -> None:
        self._count = measure(prompt)
        self._lock = threading.Lock()
        self._paces: dict[str, Pace] = {}
        self._units: dict[str, Units] = {}

    def draft(self, what: str, group: Group, make: Maker) -> Draft:
        """``make`` at the size that fills the group's limit; ValueError if nothing fits."""
        with self._lock:
            units = self._units.setdefault(group.key, Units(group.key))
        if (known := units.get(what)) is not None:
            return make(known)
        found, draft = fit(make, self._count, group.limit_tokens, self._pace(group), what)
        units.put(what, found)
        return draft

    def _pace(self, group: Group) -> Pace:
        with self._lock:
            if group.key not in self._paces:
                example = group.example()
                pace = measured(example, self._count, group.limit_tokens, group.unit)
                self._paces[group.key] = pace
            return self._paces[group.key]
