"""Random words, keys, values and filler text that training samples are made of."""

from __future__ import annotations

import random
import string
import uuid
from functools import cache
from itertools import islice

from retrobench.engine.embedded import vocabulary
from retrobench.tasks import substitute

Rng = random.Random
_OPENINGS = ("The", "This", "That", "Each", "Some", "In", "When", "There")
_SYLLABLES = "ba ca da el fa go hu in jo ka le mi no or pa qui ra su te ul ve wo yar zan".split()


@cache
def _spaced() -> tuple[str, ...]:
    return tuple(w for w in vocabulary.read("spaced") if w.isascii() and len(w) > 1)


@cache
def _bare() -> tuple[str, ...]:
    return tuple(w for w in vocabulary.read("bare") if w.isascii() and len(w) > 2 and w.islower())


def lower(rng: Rng, low: int, high: int) -> str:
    """A made-up word of lower-case letters."""
    return "".join(rng.choices(string.ascii_lowercase, k=rng.randint(low, high)))


def capitals(rng: Rng, count: int) -> str:
    """``count`` capital letters."""
    return "".join(rng.choices(string.ascii_uppercase, k=count))


def word(rng: Rng) -> str:
    """A known word as it stands after a space; now and then a made-up one."""
    return lower(rng, 4, 9) if rng.random() < 0.06 else known(rng)


def known(rng: Rng) -> str:
    """A known word as it stands after a space."""
    return rng.choice(_spaced())


def noun(rng: Rng) -> str:
    """A known lower-case word."""
    return lower(rng, 4, 8) if rng.random() < 0.06 else rng.choice(_bare())


def syllables(rng: Rng, names: int) -> list[str]:
    """What the invented names of a sample are made of: few, so that names are alike, but enough
    for ``names`` of them (of up to four syllables)."""
    sizes = [size for size in (6, 8, 12, len(_SYLLABLES)) if size**4 > 2 * names]
    known = rng.sample(_SYLLABLES, rng.choice(sizes))
    closed = rng.random() < 0.6
    return [s + (rng.choice("lmnrstd") if closed and rng.random() < 0.7 else "") for s in known]


def place_name(rng: Rng, parts: list[str]) -> str:
    """A capitalised invented name of two to four syllables."""
    return "".join(rng.choices(parts, k=rng.choice((2, 3, 3, 4)))).capitalize()


def identifier(rng: Rng) -> str:
    """A random uuid."""
    return str(uuid.UUID(int=rng.getrandbits(128), version=4))


def number(rng: Rng, digits: int) -> str:
    """A number of exactly ``digits`` digits."""
    return str(rng.randint(10 ** (digits - 1), 10**digits - 1))


def keys(rng: Rng, kind: str, count: int) -> list[str]:
    """``count`` distinct keys; half of the sets of word pairs share words among keys. A ``pair``
    is joined by a hyphen or now and then by a space, a ``hyphened`` one always by a hyphen."""
    shared = [(word(rng), noun(rng)) for _ in range(max(1, count // 4))]
    share = rng.random() < 0.5
    joiner = "-" if kind == "hyphened" or rng.random() < 0.8 else " "
    parts = syllables(rng, count) if kind == "name" else []
    found: dict[str, None] = {}
    while len(found) < count:
        if kind in ("pair", "hyphened"):
            first, second = word(rng), noun(rng)
            if share and rng.random() < 0.6:
                known = rng.choice(shared)
                first, second = (known[0], second) if rng.random() < 0.5 else (first, known[1])
            found[first + joiner + second] = None
        elif kind == "uuid":
            found[identifier(rng)] = None
        elif kind == "number":
            found[number(rng, rng.randint(4, 8))] = None
        elif kind == "name":
            found[place_name(rng, parts)] = None
        else:
            found[word(rng)] = None
    return list(found)


def value(rng: Rng, kind: str) -> str:
    """One value: ``number7`` ... by digits, ``uuid``, ``pair`` or ``word``."""
    if kind.startswith("number"):
        return number(rng, int(kind.removeprefix("number")))
    if kind == "uuid":
        return identifier(rng)
    return f"{word(rng)}-{noun(rng)}" if kind == "pair" else word(rng)


def sentence(rng: Rng) -> str:
    """Random known words between an opening and a full stop."""
    body = " ".join(rng.choice(_spaced()) for _ in range(rng.randint(3, 12)))
    return f"{rng.choice(_OPENINGS)} {body}."


def filler(rng: Rng) -> list[str]:
    """About 40 sentences of one kind: substitute prose, word salad or a few repeated lines."""
    kind = rng.random()
    if kind < 0.45:
        prose = substitute.essay_sentences(rng.randint(1000, 10**9))
        return [" ".join(words) for words in islice(prose, 40)]
    if kind < 0.6:
        return [sentence(rng) for _ in range(40)]
    few = [sentence(rng) for _ in range(rng.randint(2, 5))]
    short = [" ".join(f.split()[: rng.randint(3, 6)]).rstrip(".") + "." for f in few]
    return short * (40 // len(short))
