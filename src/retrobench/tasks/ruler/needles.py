"""The eight needle tasks, and needles among essays for other tasks."""

import random
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from retrobench.core.task import FollowUp
from retrobench.tasks.fitting.parts import MAX_FOLLOW_UPS, PromptFactory, PromptParts
from retrobench.tasks.haystack import Haystack
from retrobench.tasks.ruler import spec
from retrobench.tasks.ruler.words import draw

_DEPTHS = tuple(round(i * 100 / 39) for i in range(40))


@dataclass(frozen=True, slots=True, kw_only=True)
class HiddenTexts:
    """Needles, and the question that they answer."""

    needles: tuple[str, ...]
    question: str
    answers: tuple[str, ...]
    head: str = ""
    answer_prefix: str = ""


def essay_factory(
    haystack: Haystack, hidden: HiddenTexts, depths: Sequence[float], **meta: Any
) -> PromptFactory:
    """Hides the needles at fixed depths. Units: words of the essays."""

    def make(units: int) -> PromptParts:
        return PromptParts(
            context=hidden.head + insert(haystack.words(units), hidden.needles, depths),
            question=hidden.question,
            answer_prefix=hidden.answer_prefix,
            references=hidden.answers,
            meta={"haystack": haystack.name, **meta},
        )

    return make


def factory(task: str, rng: random.Random, haystack: Haystack | None) -> PromptFactory:
    """Draws keys, values and the question once; the factory sets the haystack's size.

    Units: words (essay, which needs ``haystack``), lines (noise, needle).
    """
    niah = spec.NIAH[task]
    keys = [draw(niah.key, rng) for _ in range(max(niah.num_keys, niah.num_queries))]
    values = [[draw(niah.value, rng) for _ in range(niah.num_values)] for _ in keys]
    pairs = [(keys[i], value) for i in range(len(keys)) for value in values[i]]
    needles = [sentence(niah.value, *pair) for pair in pairs]
    rng.shuffle(needles)
    queried = rng.sample(range(len(keys)), niah.num_queries)
    answers = tuple(value for i in queried for value in values[i])
    head, question, answer_prefix = wording(niah.value, [keys[i] for i in queried], len(answers))
    depths = sorted(rng.sample(_DEPTHS, len(needles)))
    place_seed, distractor_seed = rng.getrandbits(64), rng.getrandbits(64)
    distractors: list[tuple[str, str]] = []
    distractor_rng = random.Random(distractor_seed)
    others = [(keys[i], tuple(values[i])) for i in range(len(keys)) if i not in queried]

    def make(units: int) -> PromptParts:
        if haystack is not None:
            text, name = insert(haystack.words(units), needles, depths), haystack.name
        else:
            while niah.haystack == "needle" and len(distractors) < units:
                key, value = draw(niah.key, distractor_rng), draw(niah.value, distractor_rng)
                distractors.append((key, value))
            lines = [sentence(niah.value, *pair) for pair in distractors[:units]]
            lines = lines or [spec.NOISE] * units
            text, name = _between(lines, needles, random.Random(place_seed)), niah.haystack
        return PromptParts(
            context=head + text,
            question=question,
            answer_prefix=answer_prefix,
            references=answers,
            meta={"haystack": name, **_depth(text, answers)},
            follow_ups=_follow_ups(niah.value, keys, others, distractors[:units], distractor_seed),
        )

    return make


def _follow_ups(
    kind: str,
    keys: list[str],
    others: list[tuple[str, tuple[str, ...]]],
    distractors: list[tuple[str, str]],
    seed: int,
) -> tuple[FollowUp, ...]:
    """Questions for needles that the first question leaves out, if their key stands only once."""
    count = Counter(keys) + Counter(key for key, _ in distractors)
    others = [*others, *((key, (value,)) for key, value in distractors)]
    unique = [(key, answers) for key, answers in others if count[key] == 1]
    found = []
    for key, answers in random.Random(seed).sample(unique, min(MAX_FOLLOW_UPS, len(unique))):
        _, question, answer_prefix = wording(kind, [key], len(answers))
        found.append(FollowUp(question=question, answer_prefix=answer_prefix, references=answers))
    return tuple(found)


def sentence(kind: str, key: str, value: str) -> str:
    """RULER's needle: the value of a key."""
    return spec.NEEDLE.format(kind=kind, key=key, value=value)


def wording(kind: str, queries: list[str], num_answers: int) -> tuple[str, str, str]:
    """(head, question, answer prefix), in the singular if there is one answer."""
    query = queries[0] if len(queries) == 1 else ", ".join(queries[:-1]) + f", and {queries[-1]}"
    if num_answers > 1:
        parts = (spec.NIAH_HEAD, spec.NIAH_QUESTION, spec.NIAH_PREFIX)
        head, question, answer_prefix = (part.format(kind=kind, query=query) for part in parts)
        return head, question, answer_prefix
    single = kind.removesuffix("s")
    head = spec.NIAH_HEAD.replace("Some", "A").replace("are", "is").format(kind=single)
    question = spec.NIAH_QUESTION.replace("are all", "is").format(kind=single, query=query)
    answer_prefix = spec.NIAH_PREFIX.replace(" are", " is").format(kind=single, query=query)
    return head, question, answer_prefix


def insert(words: Sequence[str], needles: Sequence[str], depths: Sequence[float]) -> str:
    """Needles between sentences, at depths in percent of the sentences."""
    sentences = re.split(r"(?<=[.!?]) ", " ".join(words))
    places = [int(len(sentences) * depth / 100) for depth in depths]
    parts: list[str] = []
    start = 0
    for place, needle in zip(places, needles, strict=True):
        parts += [*sentences[start:place], needle]
        start = place
    return " ".join([*parts, *sentences[start:]])


def _between(lines: list[str], needles: list[str], rng: random.Random) -> str:
    """Needles at distinct random lines, never after the last one."""
    mixed = list(lines)
    count = min(len(needles), len(lines))
    places = sorted(rng.sample(range(len(lines)), count), reverse=True)
    for place, needle in zip(places, needles, strict=False):
        mixed.insert(place, needle)
    return "\n".join(mixed)


def _depth(text: str, answers: tuple[str, ...]) -> dict[str, float]:
    """Position of the first answer, in percent of the characters."""
    return {"depth": round(100 * max(0, text.find(answers[0])) / max(1, len(text)), 1)}
