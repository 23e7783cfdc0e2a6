"""Word sources: wonderwords' lists, numbers, uuids, and coded words."""

from __future__ import annotations

import random
import string
import uuid
from functools import cache
from importlib import resources


@cache
def _lines(name: str) -> tuple[str, ...]:
    text = (resources.files("wonderwords") / "assets" / f"{name}list.txt").read_text("utf-8")
    return tuple(sorted({line.strip() for line in text.splitlines() if line.strip()}))


@cache
def all_words() -> tuple[str, ...]:
    """Nouns, adjectives and verbs, sorted and distinct."""
    return tuple(sorted({*_lines("noun"), *_lines("adjective"), *_lines("verb")}))


def draw(kind: str, rng: random.Random) -> str:
    """A key or value: ``words`` (adjective-noun), ``numbers`` (7 digits) or ``uuids``."""
    if kind == "words":
        return f"{rng.choice(_lines('adjective'))}-{rng.choice(_lines('noun'))}"
    if kind == "numbers":
        return str(rng.randint(1_000_000, 9_999_999))
    return str(uuid.UUID(int=rng.getrandbits(128), version=4))


def letters(rng: random.Random, count: int, alphabet: str = string.ascii_uppercase) -> str:
    """``count`` random letters."""
    return "".join(rng.choices(alphabet, k=count))


def distinct_words(rng: random.Random, count: int) -> list[str]:
    """Distinct words; beyond the lists, seeded made-up ones."""
    words = list(all_words())
    rng.shuffle(words)
    seen = set(words)
    while len(words) < count:
        word = letters(rng, rng.randint(5, 9), string.ascii_lowercase)
        if word not in seen:
            seen.add(word)
            words.append(word)
    return words[:count]
