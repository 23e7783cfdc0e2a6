"""Fits prompts to their length, in many threads, with what earlier runs found out."""

from __future__ import annotations

import threading

from retrobench.core.task import Prompt
from retrobench.tasks.building import UnitCache
from retrobench.tasks.fitting.parts import PromptFactory, PromptParts, SampleGroup
from retrobench.tasks.fitting.search import TokensPerUnit, estimate, fill


class LengthFitter:
    """Fits prompts for one tokenizer and chat template."""

    def __init__(self, prompt: Prompt) -> None:
        self._prompt = prompt
        self._lock = threading.Lock()
        self._estimates: dict[str, TokensPerUnit] = {}
        self._caches: dict[str, UnitCache] = {}

    def fit(self, sample_id: str, group: SampleGroup, factory: PromptFactory) -> PromptParts:
        """The prompt that fills the group's limit; ValueError if the smallest is too long."""
        with self._lock:
            cache = self._caches.setdefault(group.key, UnitCache(group.key))
        if (known := cache.get(sample_id)) is not None:
            return factory(known)
        tokens_per_unit = self._estimate(group)
        units, parts = fill(
            factory, self._count, group.max_prompt_tokens, tokens_per_unit, sample_id
        )
        cache.put(sample_id, units)
        return parts

    def _count(self, parts: PromptParts) -> int:
        """Tokens of a prompt as it is sent: chat template and answer prefix, without BOS."""
        user = self._prompt.wrap(parts.context + parts.question)
        return self._prompt.count(parts.preamble + user + parts.answer_prefix)

    def _estimate(self, group: SampleGroup) -> TokensPerUnit:
        with self._lock:
            if group.key not in self._estimates:
                self._estimates[group.key] = estimate(
                    group.example(), self._count, group.max_prompt_tokens, group.unit
                )
            return self._estimates[group.key]
