"""The words that the embedded tokenizer knows, and the two committed lists made from them.

``words_spaced.txt`` holds the words known after a space, ``words_bare.txt`` those known at the
start of a line or after a hyphen. The lists are files so that a release of the word sources cannot
change token ids silently; a test compares them with ``collect``.
"""

import re
from collections.abc import Iterable
from importlib import resources
from pathlib import Path

FOLDER = Path(__file__).parent

# Literal strings of RULER's templates (NVIDIA/RULER scripts/data/synthetic/constants.py).
TEMPLATES = """
A Some special magic number numbers uuid uuids word words is are hidden within the following text.
Make sure to memorize it. I will quiz you about the afterwards. What are all the special magic for
mentioned in the provided text? The special magic for, and One of the special magic for is:
Memorize and track the chain(s) of variable assignment hidden in the following text. Question: Find
all variables that are assigned assgined the value in the text above. Answer: According to the
chain(s) of variable assignment in the text above, variables are assigned the value, they are: VAR
Below is a numbered list of words. In these words, some appear more often than others. Memorize the
ones that appear most often. What are the 10 most common words in the above list? The top 10 words
that appear most often in the list are: Read the following coded text and track the frequency of
each coded word. Find the three most frequently appeared coded words. Do not provide any
explanation. Please ignore the dots. What are the three most frequently appeared words in the above
coded text? According to the coded text above, the three most frequently appeared words are:
Answer the question based on the given documents. Only give me the answer and do not output any
other words. The following are given documents. Document The grass is green. The sky is blue. The
sun is yellow. Here we go. There and back again.
"""

_LETTERS = re.compile(r"[^\W\d_]+")


def _wonderwords(name: str) -> set[str]:
    listing = resources.files("wonderwords").joinpath("assets", f"{name}list.txt")
    return set(_LETTERS.findall(listing.read_text(encoding="utf-8")))


def collect(essay_words: Iterable[str]) -> tuple[list[str], list[str]]:
    """(words after a space, words at a line start or after a hyphen), each sorted.

    Keys are ``adjective-noun``, so only nouns and capitalised words need the bare form.
    """
    nouns = _wonderwords("noun")
    prose = set(_LETTERS.findall(TEMPLATES)) | set(_LETTERS.findall(" ".join(essay_words)))
    spaced = nouns | _wonderwords("adjective") | _wonderwords("verb") | prose
    bare = nouns | {word for word in prose if word[0].isupper()}
    return sorted(spaced), sorted(bare)


def write(essay_words: Iterable[str], folder: Path = FOLDER) -> None:
    """Write both lists; changes token ids, hence every result of the embedded models."""
    for name, words in zip(("spaced", "bare"), collect(essay_words), strict=True):
        (folder / f"words_{name}.txt").write_text("\n".join(words) + "\n", encoding="utf-8")


def read(name: str) -> list[str]:
    """The committed list ``spaced`` or ``bare``."""
    return (FOLDER / f"words_{name}.txt").read_text(encoding="utf-8").split()
