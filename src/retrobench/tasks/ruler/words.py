"""Word sources: wonderwords' lists, numbers, uuids, and coded words."""

import random
import string
import uuid
from functools import cache
from importlib import resources
from pathlib import Path

from retrobench.core.cell import text_hash
from retrobench.tasks.local_files import locate, read_json, shaped, some_text


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


def english_words(root: str | None) -> tuple[str, ...]:
    """RULER's long word list (``{"0": word, ...}``), or nothing if the file is missing."""
    path = locate(root, ("english_words.json",))
    return _word_list(path) if path else ()


@cache
def _word_list(path: Path) -> tuple[str, ...]:
    listed = read_json(path, "ruler")
    with shaped(path, "ruler", '{"0": word, "1": word, ...}'):
        words = {some_text(word, f"entry {name!r}") for name, word in listed.items()}
        if not words:
            raise ValueError("it has no words")
    return tuple(sorted(words))


def english_words_fingerprint(root: str | None) -> str:
    """Hash of the long word list; empty without one."""
    listed = english_words(root)
    return text_hash("\0".join(listed)) if listed else ""


def word_pool(count: int, root: str | None) -> tuple[tuple[str, ...], str]:
    """(At least ``count`` distinct words, their source): wonderwords, or the official longer list.

    Without that list (``english_words.json``) substitute words are added, and the source says so.
    """
    if count <= len(all_words()):
        return all_words(), "words"
    listed = english_words(root)
    if len(listed) >= count:
        return listed, "english words"
    return _with_substitutes(-(-count // 10_000) * 10_000), "words and substitute words"


@cache
def _with_substitutes(count: int) -> tuple[str, ...]:
    rng = random.Random(count)
    words = dict.fromkeys(all_words())
    while len(words) < count:
        words[letters(rng, rng.randint(5, 9), string.ascii_lowercase)] = None
    return tuple(words)
