"""What one sample asks of a session: a prompt, and under ``protocol=multi_turn`` what follows.

The turns of a conversation share one prefill of the context. Each question and each answer of the
model's own goes through the method's decode path and stays in its cache, as in a chat.
"""

from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Self

from retrobench.core.cell import text_hash
from retrobench.core.task import Sample
from retrobench.tasks.prompt import (
    TAIL_CHARACTERS,
    EncodedPrompt,
    PromptBuilder,
    PromptTooLong,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Conversation:
    """``follow_ups`` holds the ids between the answers, one list for each turn but the first.

    If a turn is not to find the model's answers before it, every turn is a conversation of its own
    (``apart``), and their prompts share the first one's context.
    """

    turns: tuple[Sample, ...]
    prompt: EncodedPrompt
    follow_ups: tuple[list[int], ...] = ()
    apart: tuple["Conversation", ...] = ()

    @classmethod
    def encode(cls, builder: PromptBuilder, turns: tuple[Sample, ...], limit: int | None) -> Self:
        """Ids of all turns; ``PromptTooLong`` if they and their answers exceed ``limit`` tokens."""
        if turns[0].earlier != "own" and turns[1:]:
            return cls._encode_apart(builder, turns, limit)
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
        ends = [len(one.prompt.ids) + one.new_tokens for one in self.apart]
        if ends:
            return max(ends) - len(self.prompt.ids)
        return _new_tokens(self.turns, self.follow_ups)

    @property
    def rest(self) -> list[int]:
        """Ids of the prompt behind its context."""
        return self.prompt.ids[self.prompt.context_tokens :]

    @classmethod
    def _encode_apart(
        cls, builder: PromptBuilder, turns: tuple[Sample, ...], limit: int | None
    ) -> Self:
        """A conversation for each turn: after the reference answers, or on its own."""
        if turns[0].earlier == "none":
            prompts = [builder.encode(turn) for turn in turns]
        else:
            prompts = [builder.encode(turns[0])]
            for before, turn in pairwise(turns):
                prompts.append(_continued(prompts[-1], builder.follow_up(turn, before.gold), turn))
        shared = min(prompt.context_tokens for prompt in prompts)
        shared = min(shared, _common([prompt.ids for prompt in prompts]))
        apart = []
        for turn, prompt in zip(turns, prompts, strict=True):
            if limit is not None and prompt.num_tokens + turn.max_new_tokens > limit:
                raise PromptTooLong(
                    f"{turn.id}: the prompt has {prompt.num_tokens} tokens but the model takes "
                    f"{limit - turn.max_new_tokens} beside {turn.max_new_tokens} new ones"
                )
            apart.append(cls(turns=(turn,), prompt=replace(prompt, context_tokens=shared)))
        return cls(turns=turns, prompt=apart[0].prompt, apart=tuple(apart))

    def hash_of(self, turn: int) -> str:
        """Hash of the questions up to a turn and no answer, so that methods compare."""
        if turn == 0:
            return self.prompt.text_hash
        asked = repr((self.prompt.text_hash, self.follow_ups[:turn]))
        return text_hash(asked)


def _new_tokens(turns: tuple[Sample, ...], follow_ups: tuple[list[int], ...]) -> int:
    return sum(turn.max_new_tokens for turn in turns) + sum(map(len, follow_ups))


def _continued(prompt: EncodedPrompt, ids: list[int], turn: Sample) -> EncodedPrompt:
    """A prompt with an answer and the next question behind it."""
    asked = repr((prompt.text_hash, ids))
    return replace(
        prompt,
        ids=[*prompt.ids, *ids],
        text_hash=text_hash(asked),
        tail=turn.question[-TAIL_CHARACTERS:],
    )


def _common(ids: list[list[int]]) -> int:
    """Tokens that all lists begin with, and that leave each a token."""
    shortest = min(map(len, ids)) - 1
    return next((i for i in range(shortest) if len({row[i] for row in ids}) > 1), shortest)
