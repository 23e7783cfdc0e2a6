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


def _lines(name: str) -> list[str]:
    return Path(__file__).with_name(f"substitute_{name}.txt").read_text("utf-8").splitlines()


def _read_pools() -> dict[str, list[str]]:
    """Slot of a sentence -> words that may fill it. RULER's own words are not among them."""
    pools = {slot: words for slot, *words in map(str.split, _lines("words"))}
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
    return [[_fillers(item, pools) for item in line.split()] for line in _lines("sentences")]


def essay_sentences(seed: int = 0) -> Iterator[list[str]]:
    """Endless sentences as lists of words, punctuation attached to the word before it."""
    draw = random.Random(seed).random
    plans = _plans()
    while True:
        plan = plans[int(draw() * len(plans))]
        yield [pool[int(draw() * len(pool))] for pool in plan]


def essay_words(num_words: int) -> list[str]:
    """The first ``num_words`` words of the essay (a shorter request is a prefix)."""
    stream = (word for sentence in essay_sentences() for word in sentence)
    return list(islice(stream, num_words))
