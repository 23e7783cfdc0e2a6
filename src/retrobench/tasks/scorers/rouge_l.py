"""ROUGE-L as LongBench reports it: the "f" of the ``rouge`` package 1.0.1, without its stack.

The package walks the table of the longest common subsequence (LCS) by recursion. LongBench scores a
text that overflows Python's stack as 0; which length overflows depends on the caller's depth. Here
steps are counted instead, up to what the official script survives. The package is also some hundred
times slower. The tests compare the two.
"""

import numpy as np
from numpy.typing import NDArray

MAX_STEPS = 990
"""Steps of one walk that the official ``eval.py`` survives on Python 3.11 to 3.13."""


def rouge_l(prediction: str, gold: str, max_steps: int = MAX_STEPS) -> float:
    """F score in [0, 1] over the distinct words of all sentences; 0 where the package raises."""
    predicted, expected = _sentences(prediction), _sentences(gold)
    if not predicted or not expected:
        return 0.0
    common: set[str] = set()
    for reference in expected:
        for sentence in predicted:
            found = _common_words(reference, sentence, max_steps)
            if found is None:
                return 0.0
            common |= found
    recall = len(common) / len(set().union(*expected))
    precision = len(common) / len(set().union(*predicted))
    return 2.0 * ((precision * recall) / (precision + recall + 1e-8))


def _sentences(text: str) -> list[list[str]]:
    """Words by sentence; a sentence of spaces alone holds one empty word."""
    return [" ".join(part.split()).split(" ") for part in text.split(".") if part]


def _common_words(reference: list[str], sentence: list[str], max_steps: int) -> set[str] | None:
    """Words of one LCS, with the package's choice among equals; None past ``max_steps``."""
    if min(len(reference), len(sentence)) > max_steps:
        return None  # every step takes at most one word of each
    table = _lcs_table(reference, sentence)
    words: set[str] = set()
    i, j, steps = len(reference), len(sentence), 0
    while i and j:
        if reference[i - 1] == sentence[j - 1]:
            i, j = i - 1, j - 1
            words.add(reference[i])
        elif table[i - 1, j] > table[i, j - 1]:
            i -= 1
        else:
            j -= 1
        steps += 1
    return words if steps <= max_steps else None


def _lcs_table(reference: list[str], sentence: list[str]) -> NDArray[np.int16]:
    """Lengths of the LCS of all pairs of beginnings, row by row.

    Within a row the rule ``max(above, left, diagonal + 1 where words agree)`` is a running maximum.
    """
    table = np.zeros((len(reference) + 1, len(sentence) + 1), dtype=np.int16)
    ids = {word: k for k, word in enumerate(dict.fromkeys((*reference, *sentence)))}
    columns = np.array([ids[word] for word in sentence])
    for i, word in enumerate(reference):
        above = table[i]
        best = np.maximum(above[1:], above[:-1] + (columns == ids[word]))
        np.maximum.accumulate(best, out=table[i + 1, 1:])
    return table
