"""BLEU of one sentence as nltk computes it (``sentence_bleu`` with smoothing method 4)."""

import math
from collections import Counter
from collections.abc import Sequence

_LONGEST = 4  # words of an n-gram
_K = 5  # of the smoothing


def bleu(candidate: Sequence[str], reference: Sequence[str]) -> float:
    """Geometric mean of the n-gram precisions; those of 0 are smoothed by the number of words."""
    shares = [_precision(candidate, reference, n) for n in range(1, _LONGEST + 1)]
    if not shares[0][0]:
        return 0.0
    smoothed, misses = [], 0
    for hits, count in shares:
        if not hits and len(candidate) > 1:
            misses += 1
            hits = 1 / (2**misses * _K / math.log(len(candidate)))
        smoothed.append(hits / count)
    mean = math.fsum(math.log(share) / _LONGEST for share in smoothed if share > 0)
    shorter = len(reference) / len(candidate)
    return math.exp(mean) * (math.exp(1 - shorter) if shorter > 1 else 1.0)


def _precision(candidate: Sequence[str], reference: Sequence[str], n: int) -> tuple[float, int]:
    """(n-grams of the candidate that the reference has, all of them; at least 1)."""
    ours, gold = _grams(candidate, n), _grams(reference, n)
    return (ours & gold).total(), max(1, ours.total())


def _grams(words: Sequence[str], n: int) -> Counter[tuple[str, ...]]:
    return Counter(tuple(words[i : i + n]) for i in range(len(words) - n + 1))
