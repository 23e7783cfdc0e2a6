"""Substitute records in the schemas of InfiniteBench's data sets.

The retrieval, arithmetic and code records are of the official kinds. Books and dialogues are
substitute prose with the fact that is asked for.
"""

import random
from collections.abc import Callable, Sequence
from typing import Any

from retrobench.tasks import substitute_texts
from retrobench.tasks.records import Prose, Record

_NOISE = "The grass is green. The sky is blue. The sun is yellow. Here we go. There and back again."
_PEOPLE = ("ANNA", "BORIS", "CLARA", "DAVID", "EMMA", "FELIX")
_CITIES = ("Arles", "Bergen", "Cadiz", "Delft", "Evora", "Ghent")
_CITIES_ZH = ("青石镇", "白桥镇", "云口镇", "柳湾镇")
Make = Callable[[int, random.Random, Prose], Record]


def _record(text: str, question: str, answer: list[Any], options: Sequence[str] = ()) -> Record:
    fields = {"context": text, "input": question, "answer": answer, "options": list(options)}
    return {"id": 0, **fields}


def _hidden(lines: list[str], fact: str, rng: random.Random) -> list[str]:
    lines.insert(rng.randrange(len(lines) + 1), fact)
    return lines


def passkey(tokens: int, rng: random.Random, prose: Prose) -> Record:
    """A five-digit key in repeated noise."""
    key = str(rng.randint(10_000, 99_999))
    fact = f"The pass key is {key}. Remember it. {key} is the pass key."
    lines = _hidden(prose.filled(tokens, lambda: _NOISE), fact, rng)
    return _record("\n".join(lines), "What is the pass key?", [key])


def number_string(tokens: int, rng: random.Random, prose: Prose) -> Record:
    """Ten digits, each of them several times in a row."""
    digits = "".join(rng.choice("123456789") * rng.randint(1, 3) for _ in range(10))[:10]
    fact = f"The sequence of digits is {digits}. Remember it. {digits} is the sequence of digits."
    lines = _hidden(prose.filled(tokens, lambda: _NOISE), fact, rng)
    return _record("\n".join(lines), "What is the sequence of digits?", [digits])


def kv_retrieval(tokens: int, rng: random.Random, prose: Prose) -> Record:
    """A JSON object of random keys and values."""
    pairs = substitute_texts.key_values(tokens, rng, prose)
    key = rng.choice(list(pairs))
    question = f'Key: "{key}"\nThe value associated with the specified key is: '
    return _record(f"JSON data:\n{substitute_texts.as_json(pairs)}", question, [pairs[key]])


def _book(tokens: int, rng: random.Random, prose: Prose) -> tuple[str, str, str]:
    """Prose that says where somebody was born; the name and the town."""
    name, town = rng.choice(_PEOPLE).capitalize(), rng.choice(_CITIES)
    lines = _hidden(prose.sentences(tokens, rng), f"{name} was born in the town of {town}.", rng)
    return " ".join(lines), name, town


def summary(tokens: int, rng: random.Random, prose: Prose) -> Record:
    """Prose; its first and last sentences stand in for a summary."""
    lines = prose.sentences(tokens, rng)
    return _record(" ".join(lines), "", ["\n".join([*lines[:2], lines[-1]])])


def question(tokens: int, rng: random.Random, prose: Prose) -> Record:
    """A question on prose."""
    text, name, town = _book(tokens, rng, prose)
    return _record(text, f"In which town was {name} born?", [town])


def choice(tokens: int, rng: random.Random, prose: Prose) -> Record:
    """The same with four options."""
    text, name, town = _book(tokens, rng, prose)
    options = [town, *rng.sample([other for other in _CITIES if other != town], 3)]
    rng.shuffle(options)
    return _record(text, f"In which town was {name} born?", [town], options)


def chinese(tokens: int, rng: random.Random, prose: Prose) -> Record:
    """A question on Chinese sentences."""
    text, goods = substitute_texts.chinese(
        tokens, lambda number: f"{rng.choice(_CITIES_ZH)}第{number}村", rng, prose
    )
    town = rng.choice(list(goods))
    return _record(text, f"{town}出产什么？", [goods[town]])


def dialogue(tokens: int, rng: random.Random, prose: Prose) -> Record:
    """A script in which one speaker's name is replaced."""
    turns = prose.filled(tokens, lambda: f"{rng.choice(_PEOPLE)}\n{prose.text(20, rng)}", "\n\n")
    place = rng.randrange(len(turns))
    name, _, words = turns[place].partition("\n")
    turns[place] = f"$$MASK$$\n{words} I, {name.lower()}, say so."
    return _record("\n\n".join(turns), "", [name])


def find(tokens: int, rng: random.Random, prose: Prose) -> Record:
    """The largest or smallest number of a list."""
    numbers = [int(n) for n in prose.filled(tokens, lambda: str(rng.randint(1, 99)), ", ")]
    kind = rng.choice(("largest", "smallest"))
    answer = max(numbers) if kind == "largest" else min(numbers)
    text = f"Answer with only one number, no other words. The {kind} number of the list is: "
    return _record(str(numbers), text, [answer])


def calculate(tokens: int, rng: random.Random, prose: Prose) -> Record:
    """A long sum; its partial sums stay positive."""
    sums = [rng.randint(1, 99)]

    def term() -> str:
        low = -min(99, sums[-1] - 1)
        step = rng.choice([rng.randint(low, -1), rng.randint(1, 99)]) if low else 1
        sums.append(sums[-1] + step)
        return f" {'+' if step > 0 else '-'} {abs(step)}"

    text = f"{sums[0]}{''.join(prose.filled(tokens, term, ''))}"
    return _record(text, "", sums[1:])


def code_run(tokens: int, rng: random.Random, prose: Prose) -> Record:
    """Functions that call each other; the value of a call."""
    added: list[int] = []

    def function() -> str:
        added.append(rng.randint(-9, 9))
        body = f"func_{len(added) - 2}(x) + {added[-1]}" if len(added) > 1 else f"x + {added[-1]}"
        return f"def func_{len(added) - 1}(x):\n    return {body}\n"

    functions = prose.filled(tokens, function, "\n")
    depth, value = rng.randrange(min(4, len(added))), rng.randint(1, 99)
    rng.shuffle(functions)
    question = f"Please give me the exact number of the return value of func_{depth}({value})."
    return _record("\n".join(functions), question, [value + sum(added[: depth + 1])])


def code_debug(tokens: int, rng: random.Random, prose: Prose) -> Record:
    """Functions of which one uses a name that is nowhere defined."""
    names: list[str] = []

    def function() -> str:
        names.append(f"total_{len(names)}")
        return f"def {names[-1]}(rows):\n    return sum(rows) + {rng.randint(1, 9)}\n"

    functions = prose.filled(tokens, function, "\n")
    wrong = rng.randrange(len(names))
    functions[wrong] = f"def {names[wrong]}(rows):\n    return sum(row) + undefined_name\n"
    options = [names[wrong], *rng.sample([name for name in names if name != names[wrong]], 3)]
    rng.shuffle(options)
    return _record("\n".join(functions), "", [names[wrong]], options)


SUBSTITUTES: dict[str, Make] = {
    "passkey": passkey,
    "number_string": number_string,
    "kv_retrieval": kv_retrieval,
    "longbook_sum_eng": summary,
    "longbook_choice_eng": choice,
    "longbook_qa_eng": question,
    "longbook_qa_chn": chinese,
    "longdialogue_qa_eng": dialogue,
    "math_find": find,
    "math_calc": calculate,
    "code_run": code_run,
    "code_debug": code_debug,
}
