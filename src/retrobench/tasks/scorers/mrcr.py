"""MRCR's score, as the data set's card (openai/mrcr on the Hugging Face Hub) gives it."""

from collections.abc import Sequence
from difflib import SequenceMatcher

TASKS = ("2needle", "4needle", "8needle")
FIELDS = ("prefix",)


def score(task: str, prediction: str, references: Sequence[str], prefix: str = "") -> float:
    """Similarity of answer and reference behind the prefix; 0 for an answer without it.

    The answer is not stripped: one blank before the prefix is an answer without it.
    """
    if not prediction.startswith(prefix):
        return 0.0
    answers = (reference.removeprefix(prefix) for reference in references)
    given = prediction.removeprefix(prefix)
    return max(SequenceMatcher(None, given, answer).ratio() for answer in answers)
