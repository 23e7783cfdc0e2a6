"""The eight needle tasks."""

from __future__ import annotations

import random
import re
from collections import Counter
from collections.abc import Sequence

from retrobench.core.task import FollowUp
from retrobench.tasks.haystack import Haystack
from retrobench.tasks.ruler import spec
from retrobench.tasks.ruler.draft import MAX_FOLLOW_UPS, Draft, Maker
from retrobench.tasks.ruler.words import draw

_DEPTHS = tuple(round(i * 100 / 39) for i in range(40))


def maker(task: str, rng: random.Random, haystack: Haystack | None) -> Maker:
    """Draws keys, values and the question once; the returned function sets the haystack's size.

    Units: words (essay, which needs ``haystack``), lines (noise, needle).
    """
    what = spec.NIAH[task]
    keys = [draw(what.key, rng) for _ in range(max(what.num_keys, what.num_queries))]
    values = [[draw(what.value, rng) for _ in range(what.num_values)] for _ in keys]
    needles = [
        spec.NEEDLE.format(kind=what.value, key=key, value=value)
        for key, its in zip(keys, values, strict=True)
        for value in its
    ]
    rng.shuffle(needles)
    asked = rng.sample(range(len(keys)), what.num_queries)
    answers = tuple(value for i in asked for value in values[i])
    head, question, prefix = texts(what.value, [keys[i] for i in asked], len(answers))
    depths = sorted(rng.sample(_DEPTHS, len(needles)))
    place, distract = rng.getrandbits(64), rng.getrandbits(64)
    distractors: list[tuple[str, str]] = []
    source = random.Random(distract)
    unasked = [(keys[i], tuple(values[i])) for i in range(len(keys)) if i not in asked]

    def make(units: int) -> Draft:
        if haystack is not None:
            text, name = insert(haystack.words(units), needles, depths), haystack.name
        else:
            while what.haystack == "needle" and len(distractors) < units:
                distractors.append((draw(what.key, source), draw(what.value, source)))
            lines = [
                spec.NEEDLE.format(kind=what.value, key=key, value=value)
                for key, value in distractors[:units]
            ] or [spec.NOISE] * units
            text, name = _between(lines, needles, random.Random(place)), what.haystack
        return Draft(
            context=head + text,
            question=question,
            prefix=prefix,
            references=answers,
            meta={"haystack": name, **_depth(text, answers)},
            follow_ups=_follow_ups(what.value, keys, unasked, distractors[:units], distract),
        )

    return make


def _follow_ups(
    kind: str,
    keys: list[str],
    unasked: list[tuple[str, tuple[str, ...]]],
    distractors: list[tuple[str, str]],
    seed: int,
) -> tuple[FollowUp, ...]:
    """Questions for the needles that the first one leaves out; each names a key of its own."""
    count = Counter(keys) + Counter(key for key, _ in distractors)
    others = [*unasked, *((key, (value,)) for key, value in distractors)]
    clear = [(key, answers) for key, answers in others if count[key] == 1]
    found = []
    for key, answers in random.Random(seed).sample(clear, min(MAX_FOLLOW_UPS, len(clear))):
        _, question, prefix = texts(kind, [key], len(answers))
        found.append(FollowUp(question=question, answer_prefix=prefix, references=answers))
    return tuple(found)


def texts(kind: str, queries: list[str], num_answers: int) -> tuple[str, str, str]:
    """(head, question, answer prefix); singular forms where there is one answer."""
    query = queries[0] if len(queries) == 1 else ", ".join(queries[:-1]) + f", and {queries[-1]}"
    if num_answers > 1:
        parts = (spec.NIAH_HEAD, spec.NIAH_QUESTION, spec.NIAH_PREFIX)
        head, question, prefix = (part.format(kind=kind, query=query) for part in parts)
        return head, question, prefix
    single = kind.removesuffix("s")
    head = spec.NIAH_HEAD.replace("Some", "A").replace("are", "is").format(kind=single)
    question = spec.NIAH_QUESTION.replace("are all", "is").format(kind=single, query=query)
    prefix = spec.NIAH_PREFIX.replace(" are", " is").format(kind=single, query=query)
    return head, question, prefix


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
    """Where the first answer stands, in percent of the characters."""
    return {"depth": round(100 * max(0, text.find(answers[0])) / max(1, len(text)), 1)}
