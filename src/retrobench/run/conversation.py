"""What one sample asks of a session: a prompt, and under ``protocol=multi_turn`` what follows.

The turns of a conversation share one prefill of the context. Each question and each answer of the
model's own goes through the method's decode path and stays in its cache, as in a chat.
"""

import hashlib
from dataclasses import dataclass
from typing import Self

from retrobench.core.task import Sample
from retrobench.tasks.prompt import EncodedPrompt, PromptBuilder


@dataclass(frozen=True, slots=True, kw_only=True)
class Conversation:
    """``follow_ups`` holds the ids between the answers, one list for each turn but the first."""

    turns: tuple[Sample, ...]
    prompt: EncodedPrompt
    follow_ups: tuple[list[int], ...] = ()

    @classmethod
    def encode(cls, builder: PromptBuilder, turns: tuple[Sample, ...], limit: int | None) -> Self:
        """Ids of all turns; ``PromptTooLong`` if they and their answers exceed ``limit`` tokens."""
        follow_ups = tuple(builder.follow_up(turn) for turn in turns[1:])
        room = None if limit is None else limit - _new_tokens(turns, follow_ups)
        prompt = builder.encode(turns[0], max_prompt_tokens=room)
        return cls(turns=turns, prompt=prompt, follow_ups=follow_ups)

    @property
    def sample(self) -> Sample:
        """The first turn."""
        return self.turns[0]

    @property
    def new_tokens(self) -> int:
        """Most tokens that follow the first prompt."""
        return _new_tokens(self.turns, self.follow_ups)

    def hash_of(self, turn: int) -> str:
        """Hash of the questions up to a turn and no answer, so that methods compare."""
        if turn == 0:
            return self.prompt.text_hash
        asked = repr((self.prompt.text_hash, self.follow_ups[:turn]))
        return hashlib.sha256(asked.encode()).hexdigest()[:16]


def _new_tokens(turns: tuple[Sample, ...], follow_ups: tuple[list[int], ...]) -> int:
    return len(turns) * turns[0].max_new_tokens + sum(map(len, follow_ups))
