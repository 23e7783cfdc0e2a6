"""ROUGE-Lsum as the ``rouge_score`` package computes it (no stemmer; sentences are lines).

Both texts are cut into lines. Each line of the reference is matched with all lines of the answer
by their longest common subsequences, and the words of the union count.
"""

import re
from collections import Counter
from collections.abc import Sequence


def rouge_lsum(prediction: str, references: Sequence[str]) -> float:
    """F-measure; the best over the references."""
    answer = _lines(prediction)
    return max(_f_measure(_lines(reference), answer) for reference in references)


def _lines(text: str) -> list[list[str]]:
    """Words of each line that is not empty."""
    return [re.findall(r"[a-z0-9]+", line.lower()) for line in text.split("\n") if line]


def _f_measure(reference: list[list[str]], answer: list[list[str]]) -> float:
    in_reference = Counter(word for line in reference for word in line)
    in_answer = Counter(word for line in answer for word in line)
    if not in_reference or not in_answer:
        return 0.0
    sizes, hits = (in_reference.total(), in_answer.total()), 0
    for line in reference:
        found = sorted({place for other in answer for place in _common(line, other)})
        for word in (line[place] for place in found):
            if in_reference[word] > 0 and in_answer[word] > 0:  # no word counts twice
                in_reference[word] -= 1
                in_answer[word] -= 1
                hits += 1
    recall, precision = hits / sizes[0], hits / sizes[1]
    return 2 * precision * recall / (precision + recall) if hits else 0.0


def _common(reference: list[str], answer: list[str]) -> list[int]:
    """Places in ``reference`` of one longest common subsequence, as the package walks back."""
    rows = [[0] * (len(answer) + 1)]
    for word in reference:
        above, row = rows[-1], [0]
        for j, other in enumerate(answer):
            row.append(above[j] + 1 if word == other else max(above[j + 1], row[j]))
        rows.append(row)
    i, j, found = len(reference), len(answer), []
    while i and j:
        if reference[i - 1] == answer[j - 1]:
            i, j = i - 1, j - 1
            found.append(i)
        elif rows[i][j - 1] > rows[i - 1][j]:
            j -= 1
        else:
            i -= 1
    return found
