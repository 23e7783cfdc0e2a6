"""OpenAI MRCR: give back the i-th answer to a request that a conversation holds several times.

Source: the data set's card, openai/mrcr on the Hugging Face Hub (MIT license).
"""

import json
import random
from dataclasses import dataclass

from retrobench.core.spec import option
from retrobench.core.task import Prompt, Sample
from retrobench.tasks.local_files import text_field
from retrobench.tasks.mrcr.substitute import conversation
from retrobench.tasks.records import Prose, Record, RecordsConfig, RecordsTask
from retrobench.tasks.scorers.mrcr import score

NEEDLES = (2, 4, 8)
BINS = tuple(2**power for power in range(13, 21))  # upper ends; the lower end is half of it
_ESTIMATED_FROM = 20_000  # characters; only a record near the end of a bin is counted in full
_MARGIN = 0.15


@dataclass(frozen=True, kw_only=True)
class MrcrConfig(RecordsConfig):
    """Options of ``task=mrcr``."""

    needles: tuple[int, ...] = option(NEEDLES, "equal requests in a conversation", choices=NEEDLES)
    length: tuple[int, ...] = option(
        (8192,),
        "upper ends of bins of tokens: 8192 holds the records of 4096 to 8192 tokens",
        choices=BINS,
    )
    max_new_tokens: int = option(
        2048, "room for the answer (the longest reference has 3,890 characters)", low=16
    )


class MrcrTask(RecordsTask):
    """The conversation goes through the chat template, turn by turn."""

    name = "mrcr"
    Config = MrcrConfig
    config: MrcrConfig

    def parts(self) -> tuple[str, ...]:
        """One for each number of needles, as the data set's own folders."""
        return tuple(f"{count}needle" for count in self.config.needles)

    def sample(self, part: str, index: int, raw: Record, prompt: Prompt) -> Sample | None:
        """A record of the chosen bins."""
        *history, (_, question) = _messages(raw)
        answer, prefix = text_field(raw, "answer"), text_field(raw, "random_string_to_prepend")
        if not prefix or not answer.startswith(prefix):
            raise ValueError("'answer' does not start with 'random_string_to_prepend'")
        length = self._bin([*(text for _, text in history), question, answer], prompt)
        if length is None:
            return None
        return Sample(
            id=f"{part}/{index}",
            task=part,
            question=question,
            references=(answer,),
            max_new_tokens=self.config.max_new_tokens,
            length=length,
            meta={"prefix": prefix, "messages": len(history) + 1},
            history=tuple(history),
        )

    def substitutes(self, part: str, rng: random.Random, prose: Prose) -> Record:
        """A conversation in the middle of one of the bins."""
        tokens = 0.65 * rng.choice(self.config.length)
        return conversation(int(part.removesuffix("needle")), tokens, rng, prose)

    def score(self, sample: Sample, text: str) -> float:
        """Similarity behind the prefix."""
        return score(sample.task, text, sample.references, sample.meta["prefix"])

    def _bin(self, texts: list[str], prompt: Prompt) -> int | None:
        """The chosen bin that a record belongs to, by its tokens, the answer's included."""
        characters, beginning = sum(map(len, texts)), " ".join(texts)[:_ESTIMATED_FROM]
        tokens = characters * prompt.count(beginning) / max(1, len(beginning))
        if any(abs(tokens / end - 1) < _MARGIN for end in (BINS[0] // 2, *BINS)):
            tokens = sum(map(prompt.count, texts))
        lowest = BINS[0] // 2  # the first bin alone includes its lower end
        found = (n for n in self.config.length if n // 2 < tokens + (tokens == lowest) <= n)
        return next(found, None)


def _messages(raw: Record) -> list[tuple[str, str]]:
    """(role, text) of each message; ValueError if they are no talk that ends in a question."""
    try:
        messages = json.loads(text_field(raw, "prompt"))
        found = [(message["role"], message["content"]) for message in messages]
    except (json.JSONDecodeError, RecursionError, KeyError, TypeError) as error:
        raise ValueError(f"'prompt' is no JSON list of role and content ({error})") from error
    if not found or not all(isinstance(text, str) for pair in found for text in pair):
        raise ValueError("'prompt' holds no messages, or one that is no text")
    if found[-1][0] != "user" or not found[-1][1].strip():
        raise ValueError("'prompt' must end with a question of the user")
    return found
