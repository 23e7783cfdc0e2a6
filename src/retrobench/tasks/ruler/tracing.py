"""Variable tracking: a chain of assignments among noise, after a worked example."""

import random

from retrobench.core.task import Prompt
from retrobench.tasks.fitting.parts import PromptFactory, PromptParts
from retrobench.tasks.fitting.search import estimate, fill
from retrobench.tasks.ruler import spec
from retrobench.tasks.ruler.words import letters


def factory(rng: random.Random, prompt: Prompt) -> PromptFactory:
    """Units: noise lines.

    The worked example fills 500 tokens. If a tokenizer needs more, it is the smallest possible one.
    """
    example = _example(rng, prompt)
    names = _names(rng, 5)
    value = str(rng.randint(10000, 99998))
    place = rng.getrandbits(64)

    def make(units: int) -> PromptParts:
        context = _chain(names, value, units, random.Random(place))
        count = spec.VT_HOPS + 1
        return PromptParts(
            context=example + spec.VT_HEAD + context,
            question=spec.VT_QUESTION.format(query=value),
            answer_prefix=spec.VT_PREFIX.format(count=count, query=value),
            references=tuple(names),
            meta={"haystack": "noise"},
        )

    return make


def _names(rng: random.Random, length: int) -> list[str]:
    names: list[str] = []
    while len(names) <= spec.VT_HOPS:
        name = letters(rng, length)
        if name not in names:
            names.append(name)
    return names


def _chain(names: list[str], value: str, num_lines: int, rng: random.Random) -> str:
    statements = [f"VAR {names[0]} = {value}"]
    statements += [f"VAR {b} = VAR {a} " for a, b in zip(names, names[1:], strict=False)]
    lines = [spec.NOISE] * max(num_lines, len(statements))
    places = sorted(rng.sample(range(len(lines)), len(statements)), reverse=True)
    for place, statement in zip(places, reversed(statements), strict=True):
        lines.insert(place, statement)
    return "\n".join(lines)


def _example(rng: random.Random, prompt: Prompt) -> str:
    names, value = _names(rng, 3), str(rng.randint(10000, 99998))
    place = rng.getrandbits(64)

    def make(units: int) -> str:
        text = spec.VT_HEAD + _chain(names, value, units, random.Random(place))
        text += spec.VT_QUESTION.format(query=value)
        text += spec.VT_PREFIX.format(count=len(names), query=value)
        return f"{text} {' '.join(names)}\n\n"

    limit = spec.VT_EXAMPLE_TOKENS
    if prompt.count(make(1)) > limit:
        return make(1)
    tokens_per_unit = estimate(make, prompt.count, limit, 1)
    return fill(make, prompt.count, limit, tokens_per_unit, "vt example")[2]
