"""Stand-in essays: a seeded grammar over a closed vocabulary, for runs without the real essays.

Scores on them are not RULER scores (grammar text is easier to search): every result says so.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from itertools import islice

from retrobench.tasks import standin_words as words

NAME = "stand-in prose"
ESSAY_SEED = 0

_POOLS: dict[str, tuple[str, ...]] = {
    "OPEN": words.OPENERS,
    "DET": words.DETERMINERS,
    "WHO": words.PEOPLE,
    "WHAT": words.THINGS,
    "WHERE": words.PLACES,
    "IDEA": words.IDEAS,
    "MANY": words.GROUPS,
    "ADJ": words.ADJECTIVES,
    "DID": words.DID,
    "WENT": words.HAPPENED,
    "DO": words.DO,
    "MODAL": words.MODALS,
    "ADV": words.ADVERBS,
    "PREP": words.PREPOSITIONS,
    "TIME": words.TIMES,
    "LINK": words.LINKERS,
    "LEAD": words.LEADS,
}

_SENTENCES = (
    "OPEN ADJ WHO DID DET ADJ WHAT PREP DET WHERE.",
    "OPEN WHO DID DET WHAT, LINK DET ADJ WHO WENT ADV.",
    "OPEN WHO WENT PREP DET ADJ WHERE before DET TIME.",
    "LEAD, DET WHO DID DET ADJ WHAT and DID DET WHAT.",
    "LEAD DET WHERE was ADJ, LINK DET WHO DID DET WHAT ADV.",
    "In DET ADJ WHERE, DET WHO WENT LINK DET WHO DID DET WHAT.",
    "During DET ADJ TIME, DET WHO DID DET WHAT of DET WHERE.",
    "When DET WHO DID DET WHAT, DET ADJ WHERE was ADJ and ADJ.",
    "People who DO IDEA ADV DO IDEA without IDEA.",
    "Most MANY DO IDEA, but ADJ MANY DO DET WHAT.",
    "If you DO IDEA, you MODAL DO DET WHAT or DET WHERE.",
    "What MANY DO is not IDEA but DET ADJ kind of IDEA.",
    "IDEA_CAP is ADV ADJ, LINK IDEA MODAL DO MANY.",
    "There was DET ADJ WHAT PREP DET WHERE, LINK DET WHO DID it.",
    "It was ADJ to see how DET WHO DID DET WHAT with IDEA.",
    "We DID DET WHAT for DET TIME, as ADJ MANY MODAL.",
    "Nobody PREP DET WHERE DID DET ADJ WHAT after DET TIME.",
    "OPEN TIME DET WHO WENT from DET WHERE to DET ADJ WHERE.",
    "Why do MANY DO IDEA more than IDEA?",
    "I ADV DID DET WHAT that DET WHO DID PREP DET WHERE.",
)


def _slot(item: str) -> tuple[str, ...]:
    """The words that may fill one place of a sentence, punctuation attached."""
    name = item.rstrip(".,?")
    mark = item[len(name) :]
    if name == "IDEA_CAP":
        return tuple(word.capitalize() + mark for word in words.IDEAS)
    return tuple(word + mark for word in _POOLS.get(name, (name,)))


_PLANS = tuple(
    tuple((pool, len(pool)) for pool in map(_slot, sentence.split())) for sentence in _SENTENCES
)

VOCABULARY: tuple[str, ...] = tuple(
    sorted({word.rstrip(".,?") for plan in _PLANS for pool, _ in plan for word in pool})
)
"""Every word the essays can hold, with its capitalisation and without punctuation."""


def essay_sentences(seed: int = ESSAY_SEED) -> Iterator[list[str]]:
    """Endless sentences as lists of words, punctuation attached to the word before it."""
    draw = random.Random(seed).random
    num_plans = len(_PLANS)
    while True:
        plan = _PLANS[int(draw() * num_plans)]
        yield [pool[int(draw() * size)] for pool, size in plan]


def essay_words(num_words: int, seed: int = ESSAY_SEED) -> list[str]:
    """The first ``num_words`` words of the seed's essay (a shorter request is a prefix)."""
    stream = (word for sentence in essay_sentences(seed) for word in sentence)
    return list(islice(stream, num_words))
