"""A prompt in parts, and a group of samples that are made alike."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from retrobench.core.task import FollowUp

MAX_FOLLOW_UPS = 15  # further questions kept per context


@dataclass(frozen=True, slots=True, kw_only=True)
class PromptParts:
    """A prompt before it becomes a ``Sample``. ``preamble`` comes before the wrapped user turn."""

    context: str = ""
    question: str = ""
    answer_prefix: str = ""
    references: tuple[str, ...] = ()
    preamble: str = ""
    meta: Mapping[str, Any] = field(default_factory=dict)
    error: str = ""
    follow_ups: tuple[FollowUp, ...] = ()


PromptFactory = Callable[[int], PromptParts]
"""Makes the prompt with a haystack of that many units (words, lines, documents ...)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SampleGroup:
    """Samples that differ only in their random draws.

    They share one estimate of the tokens per unit and one file of known units. ``key`` identifies
    builder version, tokenizer, data and options.
    """

    name: str
    """Sample ``i`` has the id ``name/i``."""
    task: str
    length: int
    max_new_tokens: int
    key: str
    factory: Callable[[str, int], PromptFactory]
    """(random seed, sample index) -> factory; ValueError if the sample cannot be made."""
    example: Callable[[], PromptFactory]
    """A factory that belongs to no sample: measured, so that no sample depends on another."""
    unit: int = 1
    """Units that make about one line."""
    salt: str = ""
    """Added to the random seed of each sample."""

    @property
    def max_prompt_tokens(self) -> int:
        """Tokens of the prompt, at most."""
        return self.length - self.max_new_tokens
