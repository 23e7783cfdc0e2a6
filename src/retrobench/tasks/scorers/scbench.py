"""SCBench's metrics (microsoft/MInference fb56c917, scbench/compute_scores.py, repo_qa_utils)."""

import re
from collections.abc import Callable, Mapping, Sequence

from retrobench.tasks.scorers.answers import f1_zh, first_digits, first_number, multiple_choice
from retrobench.tasks.scorers.bleu import bleu
from retrobench.tasks.scorers.rouge_lsum import rouge_lsum

SIMILAR = 0.8  # least BLEU of a function that counts as found
_BLOCK = re.compile(r"^```(?:\w+)?\s*\n(.*?)(?=^```)```", re.DOTALL | re.MULTILINE)


def score(task: str, prediction: str, references: Sequence[str]) -> float:
    """A turn's metric; ``task`` is the turn's own in the mixed tasks. All but the functions."""
    return float(_FUNCTIONS[task](prediction, references))


def function(prediction: str, name: str, functions: Mapping[str, str]) -> float:
    """1 if the function asked for is the one most similar to the answer, and similar enough.

    ``functions``: all functions that are asked for in the repository, by name.
    """
    words = _code(prediction)
    best, most = None, 0.0
    for other, code in functions.items():
        similarity = bleu(words, re.split(r"\s+", code.strip()))
        if similarity > most:
            best, most = other, similarity
    return float(best == name and most >= SIMILAR)


def _code(prediction: str) -> list[str]:
    """Words of the first code block; of the whole answer if there is none.

    The official script takes the first function out of the block with a parser.
    """
    text = prediction.strip()
    block = _BLOCK.search(text)
    return re.split(r"\s+", (block.group(1) if block else text).strip())


def contains(prediction: str, references: Sequence[str]) -> bool:
    """The reference as it is, anywhere."""
    return references[0] in prediction


def contains_any(prediction: str, references: Sequence[str]) -> bool:
    """Any of the references, without regard to case."""
    return any(reference.upper() in prediction.strip().upper() for reference in references)


def share(prediction: str, references: Sequence[str]) -> float:
    """Share of the references found, without regard to case, to two decimals."""
    found = [reference.lower() in prediction.lower() for reference in references]
    return round(sum(found) / len(found), 2)


def find(prediction: str, references: Sequence[str]) -> bool:
    """The first number; where the reference is whole, its decimals are cut off."""
    number, label = first_number(prediction), references[0]
    if number is None:
        return False
    return float(number) == float(label) if "." in label else int(float(number)) == int(label)


_FUNCTIONS: dict[str, Callable[[str, Sequence[str]], float]] = {
    "scbench_kv": contains,
    "scbench_prefix_suffix": contains,
    "scbench_vt": share,
    "scbench_qa_eng": contains_any,
    "scbench_qa_chn": f1_zh,
    "scbench_choice_eng": multiple_choice,
    "scbench_many_shot": contains_any,
    "scbench_summary": rouge_lsum,
    "scbench_mf": find,
    "scbench_passkey": lambda text, gold: first_digits(text) == gold[0],
}
TASKS = tuple(_FUNCTIONS)
