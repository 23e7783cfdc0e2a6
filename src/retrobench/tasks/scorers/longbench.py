"""LongBench's metrics (THUDM/LongBench 2e00731f, metrics.py and eval.py), quirks included.

Scores are per sample in [0, 1], unrounded: the best over the references.
"""

import difflib
import logging
import re
import string
from collections.abc import Callable, Sequence
from functools import partial

from retrobench.tasks.longbench.prompts import DATASETS
from retrobench.tasks.scorers.answers import CHINESE_PUNCTUATION, f1
from retrobench.tasks.scorers.rouge_l import MAX_STEPS, rouge_l

TASKS = tuple(DATASETS)
PARAGRAPHS = {"retrieval": r"Paragraph (\d+)", "retrieval_zh": r"段落(\d+)"}
"""Metric -> how a reference names the gold paragraph."""


def score(
    task: str, prediction: str, references: Sequence[str], all_classes: Sequence[str] | None = None
) -> float:
    """The best value of the task's metric over the references, at least 0."""
    dataset = DATASETS[task]
    if dataset.first_line:
        prediction = prediction.lstrip("\n").split("\n")[0]
    options = [list(all_classes or ())] if dataset.metric == "classification" else []
    metric = _FUNCTIONS[dataset.metric]
    return max(0.0, *(metric(prediction, gold, *options) for gold in references))


def qa_f1(prediction: str, gold: str) -> float:
    """Token F1 after lower-casing and dropping ASCII punctuation and articles."""
    return f1(_normal(prediction).split(), _normal(gold).split())


def qa_f1_zh(prediction: str, gold: str) -> float:
    """F1 over jieba tokens of the raw text."""
    return f1(_chinese(prediction), _chinese(gold))


def rouge_zh(prediction: str, gold: str) -> float:
    """ROUGE-L over jieba tokens. The official script calls one level deeper here."""
    return rouge_l(" ".join(_cut(prediction)), " ".join(_cut(gold)), MAX_STEPS - 1)


def classification(prediction: str, gold: str, all_classes: list[str]) -> float:
    """1 / number of classes named, if the gold one is among them.

    The official loop removes items from the list that it walks, so it skips the class after a
    removed one. This loop does the same.
    """
    matched = [name for name in all_classes if name in prediction]
    for name in matched:
        if name in gold and name != gold:
            matched.remove(name)
    return 1.0 / len(matched) if gold in matched else 0.0


def retrieval(prediction: str, gold: str, form: str) -> float:
    """Share of the answer's numbers that name the gold paragraph; ``form``: how gold names it."""
    match = re.search(form, gold)
    if match is None:
        raise ValueError(f"reference {gold!r} names no paragraph")
    return _share(prediction, match.group(1))


def count(prediction: str, gold: str) -> float:
    """Share of the answer's numbers that equal the gold count."""
    return _share(prediction, str(gold))


def code_sim(prediction: str, gold: str) -> float:
    """Similarity of the first code line (difflib, whole percents: fuzzywuzzy without extras)."""
    line = ""
    for candidate in prediction.lstrip("\n").split("\n"):
        if not any(mark in candidate for mark in ("`", "#", "//")):
            line = candidate
            break
    if line == gold:
        return 1.0
    if not line or not gold:
        return 0.0
    return int(round(100 * difflib.SequenceMatcher(None, line, gold).ratio())) / 100


_FUNCTIONS: dict[str, Callable[..., float]] = {
    "qa_f1": qa_f1,
    "qa_f1_zh": qa_f1_zh,
    "rouge": rouge_l,
    "rouge_zh": rouge_zh,
    "classification": classification,
    **{metric: partial(retrieval, form=form) for metric, form in PARAGRAPHS.items()},
    "count": count,
    "code_sim": code_sim,
}


def _normal(text: str) -> str:
    kept = "".join(letter for letter in text.lower() if letter not in string.punctuation)
    return re.sub(r"\b(a|an|the)\b", " ", kept)


def _chinese(text: str) -> list[str]:
    dropped = set(string.punctuation + CHINESE_PUNCTUATION)
    tokens = []
    for token in _cut(text):
        kept = "".join(letter for letter in token.lower() if letter not in dropped)
        tokens.append("".join(kept.split()))
    return [token for token in tokens if token]


def _cut(text: str) -> list[str]:
    try:
        import jieba
    except ImportError as error:
        raise ValueError("LongBench needs jieba: pip install 'retrobench[longbench]'") from error
    jieba.setLogLevel(logging.WARNING)
    return list(jieba.cut(text, cut_all=False))


def _share(prediction: str, gold: str) -> float:
    numbers = re.findall(r"\d+", prediction)
    return sum(number == gold for number in numbers) / len(numbers) if numbers else 0.0
