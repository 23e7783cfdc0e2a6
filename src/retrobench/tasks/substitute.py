"""Substitute essays for runs without the real ones: a seeded grammar over a closed vocabulary.

Scores on them are not RULER scores, because grammar text is easier to search. Every result says so.
"""

import random
from collections.abc import Iterator
from functools import cache
from itertools import islice
from pathlib import Path

NAME = "substitute prose"
KEY_NAME = "stand-in prose"  # its older name, which cell keys have
ESSAY_SEED = 0

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


def _read_pools() -> dict[str, list[str]]:
    """Slot of a sentence -> words that may fill it. RULER's own words are not among them."""
    text = Path(__file__).with_name("substitute_words.txt").read_text("utf-8")
    pools = {slot: words for slot, *words in map(str.split, text.splitlines())}
    for first, slot in (("OPEN", "DET"), ("IDEA_CAP", "IDEA")):  # at the start of a sentence
        pools[first] = [word.capitalize() for word in pools[slot]]
    return pools


def _fillers(item: str, pools: dict[str, list[str]]) -> tuple[str, ...]:
    """The words that may fill one place of a sentence, punctuation attached."""
    slot = item.rstrip(".,?")
    mark = item[len(slot) :]
    return tuple(word + mark for word in pools.get(slot, [slot]))


@cache
def _plans() -> list[list[tuple[str, ...]]]:
    """For every sentence, the words that may fill each of its places."""
    pools = _read_pools()
    return [[_fillers(item, pools) for item in sentence.split()] for sentence in _SENTENCES]


def essay_sentences(seed: int = ESSAY_SEED) -> Iterator[list[str]]:
    """Endless sentences as lists of words, punctuation attached to the word before it."""
    draw = random.Random(seed).random
    plans = _plans()
    while True:
        plan = plans[int(draw() * len(plans))]
        yield [pool[int(draw() * len(pool))] for pool in plan]


def essay_words(num_words: int, seed: int = ESSAY_SEED) -> list[str]:
    """The first ``num_words`` words of the seed's essay (a shorter request is a prefix)."""
    stream = (word for sentence in essay_sentences(seed) for word in sentence)
    return list(islice(stream, num_words))
