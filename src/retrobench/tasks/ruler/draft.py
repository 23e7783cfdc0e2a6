"""What a generator returns before it becomes a Sample."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from retrobench.core.task import FollowUp, Prompt

MAX_FOLLOW_UPS = 15  # further questions kept per context


@dataclass(frozen=True, slots=True, kw_only=True)
class Draft:
    """A prompt in parts. ``preamble`` precedes the wrapped user turn (cwe's one-shot example)."""

    context: str
    question: str
    prefix: str
    references: tuple[str, ...]
    preamble: str = ""
    meta: Mapping[str, Any] = field(default_factory=dict)
    error: str = ""
    follow_ups: tuple[FollowUp, ...] = ()


Maker = Callable[[int], Draft]


def measure(prompt: Prompt) -> Callable[[Draft], int]:
    """Tokens of a draft as it will be sent: chat template and answer prefix, without BOS."""

    def count(draft: Draft) -> int:
        user = prompt.wrap(draft.context + draft.question)
        return prompt.count(draft.preamble + user + draft.prefix)

    return count
