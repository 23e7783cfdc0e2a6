"""BABILong's accuracy (booydar/babilong 7a6efee2, babilong/metrics.py).

The first sentence of the answer must name the target and no other label of the task. Labels that
the question names do not count.
"""

from collections.abc import Sequence

PLACES: tuple[str, ...] = ("bathroom", "bedroom", "garden", "hallway", "kitchen", "office")
_YES_NO = ("no", "yes")
_PATHS = "e,e e,n e,s n,e n,n n,w s,e s,s s,w w,n w,s w,w"
LABELS: dict[str, tuple[str, ...]] = {
    **dict.fromkeys(("qa1", "qa2", "qa3", "qa4", "qa11", "qa12", "qa13"), PLACES),
    **dict.fromkeys(("qa6", "qa9", "qa17", "qa18"), _YES_NO),
    "qa5": ("bill", "fred", "jeff", "mary", "apple", "football", "milk"),
    "qa7": ("none", "one", "three", "two"),
    "qa8": ("apple", "football", "milk", "nothing"),
    "qa10": ("maybe", "no", "yes"),
    "qa14": ("bedroom", "cinema", "kitchen", "office", "park", "school"),
    "qa15": ("cat", "mouse", "sheep", "wolf"),
    "qa16": ("gray", "green", "white", "yellow"),
    "qa19": tuple(_PATHS.split()),
    "qa20": ("bedroom", "bored", "garden", "hungry", "kitchen", "thirsty", "tired"),
}
TASKS = tuple(f"qa{number}" for number in range(1, 21))
FIELDS = ("question",)


def score(task: str, prediction: str, references: Sequence[str], question: str = "") -> float:
    """1 if the answer names one of the targets and nothing else.

    Labels are found anywhere, inside other words too: "no" in "nothing". The official rule has a
    cut at ``Question``, which never applies, because the answer is in lower case by then.
    """
    answer = prediction.lower().split(".")[0].split("<context>")[0].split("<example>")[0]
    asked = {label for label in LABELS[task] if label in question.lower()}
    named = {label for label in LABELS[task] if label in answer} - asked
    return float(any(sorted(named) == _wanted(target) for target in references))


def _wanted(target: str) -> list[str]:
    """The labels of a target: qa8 has lists, while the comma of qa19's ``n,e`` is part of one."""
    text = target.lower()
    return sorted(text.split(",")) if "," in text and len(text) > 3 else [text]
