"""InfiniteBench's metrics (OpenBMB/InfiniteBench 88b3daa6, src/compute_scores.py)."""

import re
from collections.abc import Callable, Sequence

from retrobench.tasks.scorers.answers import (
    behind,
    blanked,
    f1_zh,
    first_digits,
    first_number,
    multiple_choice,
    squeezed,
)
from retrobench.tasks.scorers.longbench import qa_f1
from retrobench.tasks.scorers.rouge_lsum import rouge_lsum

_ERROR_PREFIXES = ("answer is:", "is:", "answer:", "correct option is:")


def score(task: str, prediction: str, references: Sequence[str]) -> float:
    """The task's metric. Numbers are given as text: ``12`` is whole and ``12.0`` is not."""
    return float(_FUNCTIONS[task](prediction, references))


def digits(prediction: str, references: Sequence[str]) -> bool:
    """The first run of digits (passkey, number_string)."""
    return first_digits(prediction) == references[0]


def key_value(prediction: str, references: Sequence[str]) -> bool:
    """The value as a word of its own."""
    return references[0] in blanked(prediction, "\n:\"'.,?!{}").split()


def answer_f1(prediction: str, references: Sequence[str]) -> float:
    """Token F1, the best over the references."""
    return max(qa_f1(prediction, gold) for gold in references)


def speaker(prediction: str, references: Sequence[str]) -> bool:
    """The first reference as a word, in capitals. A name of two words is never found."""
    return references[0] in blanked(prediction.strip(), "\n:\"'.,?!{}").upper().split()


def find(prediction: str, references: Sequence[str]) -> bool:
    """The first number. The official script ends at a decimal one where a whole one is due."""
    number, label = first_number(prediction), references[0]
    if number is None:
        return False
    if "." in label:
        return float(number) == float(label)
    return "." not in number and int(number) == int(label)


def calculate(prediction: str, references: Sequence[str]) -> float:
    """Numbers right in a row from the first, as a share of all. Signs are not read."""
    given, right = (int(run) for run in re.findall("[0-9]+", prediction)), 0
    for number, label in zip(given, references, strict=False):
        if number != int(label):
            break
        right += 1
    return right / len(references)


def code_run(prediction: str, references: Sequence[str]) -> bool:
    """The last word as a whole number."""
    words = blanked(prediction.strip(), "\n.`'\":").split()
    try:
        return bool(words) and int(words[-1]) == int(references[0])
    except ValueError:
        return False


def code_debug(prediction: str, references: Sequence[str]) -> bool:
    """The letter at the start, or letter or function name behind a prefix."""
    name, letter = references
    text = prediction.strip()
    if text[:2] in (f"{letter}.", f"{letter}:"):
        return True
    text = blanked(text, "\n`'\"-*").replace("Option", " ").replace("option", " ")
    text = squeezed(text)
    for prefix in _ERROR_PREFIXES:
        if prefix in text:
            rest = behind(text, prefix)
            return rest is not None and rest.startswith((letter, name))
    return False


_FUNCTIONS: dict[str, Callable[[str, Sequence[str]], float]] = {
    "passkey": digits,
    "number_string": digits,
    "kv_retrieval": key_value,
    "longbook_sum_eng": rouge_lsum,
    "longbook_choice_eng": multiple_choice,
    "longbook_qa_eng": answer_f1,
    "longbook_qa_chn": f1_zh,
    "longdialogue_qa_eng": speaker,
    "math_find": find,
    "math_calc": calculate,
    "code_run": code_run,
    "code_debug": code_debug,
}
TASKS = tuple(_FUNCTIONS)
