"""Aggregation: common words (cwe) and frequent coded words (fwe)."""

import math
import random
import string
from collections.abc import Sequence

from retrobench.core.task import Prompt
from retrobench.tasks.fitting.parts import PromptFactory, PromptParts
from retrobench.tasks.ruler import spec
from retrobench.tasks.ruler.words import all_words, letters, word_pool

_NUM_COMMON = 10
_ALPHA = 2.0
_ZETA = math.pi**2 / 6  # zeta(2)
_WORD_SHARE = 50  # of the length: one distinct coded word per 50 tokens


def cwe_factory(
    rng: random.Random, length: int, prompt: Prompt, root: str | None = None
) -> PromptFactory:
    """Units: distinct words; more than wonderwords has come from the official word list.

    Below 4096 tokens the official code uses lighter frequencies."""
    common, rare = (30, 3) if length >= 4096 else (6, 1)
    example = (40, 10, 3) if length >= 4096 else (20, 3, 1)
    shot = _listing(rng, *example, all_words())
    shot_text = spec.CWE_HEAD + shot[0] + spec.CWE_QUESTION
    answers = " ".join(f"{i}. {word}" for i, word in enumerate(shot[1], 1))
    preamble = f"{prompt.wrap(shot_text)}{spec.CWE_PREFIX} {answers}\n"
    seed = rng.getrandbits(64)

    def make(units: int) -> PromptParts:
        count = max(units, _NUM_COMMON)
        pool, source = word_pool(count, root)
        text, top = _listing(random.Random(seed), count, common, rare, pool)
        return PromptParts(
            context=spec.CWE_HEAD + text,
            question=spec.CWE_QUESTION,
            answer_prefix=spec.CWE_PREFIX,
            references=tuple(top),
            preamble=preamble,
            meta={"haystack": source},
        )

    return make


def _listing(
    rng: random.Random, num_words: int, common: int, rare: int, pool: Sequence[str]
) -> tuple[str, list[str]]:
    words = rng.sample(pool, num_words)
    top = words[:_NUM_COMMON]
    repeated = top * common + words[_NUM_COMMON:] * rare
    rng.shuffle(repeated)
    return " ".join(f"{i}. {word}" for i, word in enumerate(repeated, 1)), top


def fwe_factory(rng: random.Random, length: int, prompt: Prompt) -> PromptFactory:
    """Units: words of the coded text, Zipf-like with exponent 2; rank 1 is dots."""
    template = prompt.count(prompt.wrap(spec.FWE_HEAD + spec.FWE_QUESTION) + spec.FWE_PREFIX)
    num_words = max(4, (length - template - spec.NEW_TOKENS["fwe"]) // _WORD_SHARE)
    drawn: dict[str, None] = {}
    while len(drawn) < num_words:
        drawn[letters(rng, 6, string.ascii_lowercase)] = None
    vocabulary = list(drawn)
    vocabulary[0] = "..."
    seed = rng.getrandbits(64)

    def make(units: int) -> PromptParts:
        text: list[str] = []
        total = max(units, 60)
        for rank, word in enumerate(vocabulary, 1):
            text += [word] * int(total * rank**-_ALPHA / _ZETA)
        random.Random(seed).shuffle(text)
        return PromptParts(
            context=spec.FWE_HEAD + " ".join(text),
            question=spec.FWE_QUESTION,
            answer_prefix=spec.FWE_PREFIX,
            references=tuple(vocabulary[1:4]),
            meta={"haystack": "coded words"},
        )

    return make
