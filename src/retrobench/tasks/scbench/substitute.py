"""Substitute records in the schemas of SCBench's data sets: contexts with several questions."""

import random
import string
from collections.abc import Callable
from typing import Any

from retrobench.tasks import substitute_texts
from retrobench.tasks.records import Prose, Record

_CITIES = ("Arles", "Bergen", "Cadiz", "Delft", "Evora", "Ghent", "Hull", "Izmir")
_PEOPLE = ("Anna", "Boris", "Clara", "David", "Emma", "Felix", "Greta", "Hugo")
_RULES = {"red": "(A)", "blue": "(B)", "green": "(C)"}
Make = Callable[[int, int, random.Random, Prose], Record]


def _record(text: str, turns: list[dict[str, Any]], **fields: Any) -> Record:
    return {"id": 0, "context": text, "multi_turns": turns, **fields}


def _key_turn(key: str, value: str) -> dict[str, Any]:
    return {
        "input": f'Key: "{key}"\nThe value associated with the specified key is: ',
        "answer": value,
    }


def key_values(tokens: int, turns: int, rng: random.Random, prose: Prose) -> Record:
    """A JSON object of random keys and values."""
    pairs = substitute_texts.key_values(tokens, rng, prose)
    asked = [_key_turn(key, pairs[key]) for key in rng.sample(list(pairs), turns)]
    return _record(substitute_texts.as_json(pairs), asked)


def prefix_suffix(tokens: int, turns: int, rng: random.Random, prose: Prose) -> Record:
    """Random strings, found by how they begin and end."""
    lines = prose.filled(tokens, lambda: "".join(rng.choices(string.ascii_lowercase, k=40)))
    form = "Please give me the string that begins with {} and ends with {}. The string is: "
    asked = [
        {"input": form.format(text[:8], text[-8:]), "answer": text}
        for text in rng.sample(lines, turns)
    ]
    return _record("\n".join(lines), asked)


def variables(tokens: int, turns: int, rng: random.Random, prose: Prose) -> Record:
    """Chains of assignments among noise."""
    chains, facts = [], []
    for number in rng.sample(range(10_000, 99_999), turns):
        names = ["".join(rng.choices(string.ascii_uppercase, k=5)) for _ in range(3)]
        chains.append((number, names))
        facts += [f"VAR {names[0]} = {number}"]
        facts += [f"VAR {b} = VAR {a}" for a, b in zip(names, names[1:], strict=False)]
    lines = substitute_texts.scattered(facts, prose.sentences(tokens, rng), rng)
    form = "Find all variables that are assigned the value {} in the text above."
    return _record("\n".join(lines), [{"input": form.format(n), "answer": v} for n, v in chains])


def _functions(tokens: int, turns: int, rng: random.Random, prose: Prose) -> tuple[str, list[Any]]:
    """Python functions; those that are asked for, with a description."""
    known: dict[str, str] = {}

    def make() -> str:
        name, size, other = f"step_{len(known)}", rng.randint(2, 99), rng.randint(2, 99)
        known[name] = (
            f"def {name}(rows, limit={size}):\n    kept = [row for row in rows if row > limit]\n"
            f"    total = sum(kept) * {other}\n    return total - len(rows) + {size * other}\n"
        )
        return known[name]

    text = "\n".join(prose.filled(tokens, make))
    form = "Function Description: multiplies the sum of all rows above its limit. Its name is {}."
    asked = [
        {"input": form.format(name), "answer": known[name], "name": name, "task": "scbench_repoqa"}
        for name in rng.sample(list(known), turns)
    ]
    return text, asked


def repository(tokens: int, turns: int, rng: random.Random, prose: Prose) -> Record:
    """Functions of one repository."""
    text, asked = _functions(tokens, turns, rng, prose)
    return _record(text, asked, repo=f"substitute/{rng.getrandbits(32):08x}", lang="python")


def _born(tokens: int, turns: int, rng: random.Random, prose: Prose) -> tuple[str, dict[str, str]]:
    """Prose that says where people were born."""
    people = rng.sample(_PEOPLE, turns)
    towns = {name: rng.choice(_CITIES) for name in people}
    lines = prose.sentences(tokens, rng)
    for name, town in towns.items():
        lines.insert(rng.randrange(len(lines) + 1), f"{name} was born in the town of {town}.")
    return " ".join(lines), towns


def question(tokens: int, turns: int, rng: random.Random, prose: Prose) -> Record:
    """Questions on prose."""
    text, towns = _born(tokens, turns, rng, prose)
    asked = [{"input": f"Where was {name} born?", "answer": town} for name, town in towns.items()]
    return _record(text, asked)


def choice(tokens: int, turns: int, rng: random.Random, prose: Prose) -> Record:
    """The same with four options."""
    record = question(tokens, turns, rng, prose)
    for turn in record["multi_turns"]:
        others = [town for town in _CITIES if town != turn["answer"]]
        turn["options"] = rng.sample([turn["answer"], *rng.sample(others, 3)], 4)
    return record


def chinese(tokens: int, turns: int, rng: random.Random, prose: Prose) -> Record:
    """Questions on Chinese sentences."""
    text, goods = substitute_texts.chinese(tokens, "青石第{}村".format, rng, prose)
    asked = [
        {"input": f"{town}出产什么？", "answer": [goods[town]]}
        for town in rng.sample(list(goods), turns)
    ]
    return _record(text, asked)


def many_shot(tokens: int, turns: int, rng: random.Random, prose: Prose) -> Record:
    """Solved examples of a rule, and new cases of it."""

    def case() -> tuple[str, str]:
        colour = rng.choice(list(_RULES))
        return f"Q: The stone {rng.randint(1, 999)} is {colour}. Which group?\nA: ", _RULES[colour]

    text = "\n\n".join(prose.filled(tokens, lambda: "".join(case()), "\n\n"))
    return _record(
        text, [dict(zip(("input", "answer"), case(), strict=True)) for _ in range(turns)]
    )


def _summary(index: int, text: str) -> dict[str, Any]:
    return {
        "input": f"Please summarize section {index}.",
        "answer": text,
        "task": "scbench_summary",
    }


def summary(tokens: int, turns: int, rng: random.Random, prose: Prose) -> Record:
    """Sections of prose; the first sentence of each stands in for its summary."""
    sections = [prose.sentences(tokens / turns, rng) for _ in range(turns)]
    text = "\n\n".join(f"Section {i}\n{' '.join(s)}" for i, s in enumerate(sections, 1))
    return _record(text, [_summary(i, s[0]) for i, s in enumerate(sections, 1)])


def numbers(tokens: int, turns: int, rng: random.Random, prose: Prose) -> Record:
    """The largest, smallest and other numbers of a list."""
    listed = [int(n) for n in prose.filled(tokens, lambda: str(rng.randint(1, 999)), ", ")]
    ordered = sorted(set(listed))
    asked = [("largest", ordered[-1]), ("smallest", ordered[0]), ("second largest", ordered[-2])]
    asked += [("second smallest", ordered[1]), ("third largest", ordered[-3])]
    turns_ = [{"input": f"The {name} number is: ", "answer": n} for name, n in asked]
    return _record(str(listed), [turns_[i % len(turns_)] for i in range(turns)])


def summary_with_needles(tokens: int, turns: int, rng: random.Random, prose: Prose) -> Record:
    """Summaries and pass keys in turn."""
    record, asked = summary(tokens, turns, rng, prose), []
    text = record["context"]
    for number, turn in enumerate(record["multi_turns"]):
        if number % 2 == 0:
            asked.append(turn)
            continue
        key = str(rng.randint(10_000, 99_999))
        text += f"\n\nThe pass key {number} is {key}."
        asked.append(
            {"input": f"What is the pass key {number}?", "answer": key, "task": "scbench_passkey"}
        )
    return _record(text, asked)


def repository_and_keys(tokens: int, turns: int, rng: random.Random, prose: Prose) -> Record:
    """Functions and key-value pairs in turn."""
    text, functions = _functions(tokens // 2, turns, rng, prose)
    pairs = substitute_texts.key_values(tokens // 2, rng, prose)
    keys = [
        {**_key_turn(key, pairs[key]), "task": "scbench_kv"}
        for key in rng.sample(list(pairs), turns)
    ]
    asked = [functions[i] if i % 2 == 0 else keys[i] for i in range(turns)]
    repo = f"substitute/{rng.getrandbits(32):08x}"
    return _record(f"{text}\n\n{substitute_texts.as_json(pairs)}", asked, repo=repo, lang="python")


SUBSTITUTES: dict[str, Make] = {
    "scbench_kv": key_values,
    "scbench_prefix_suffix": prefix_suffix,
    "scbench_vt": variables,
    "scbench_repoqa": repository,
    "scbench_qa_eng": question,
    "scbench_qa_chn": chinese,
    "scbench_choice_eng": choice,
    "scbench_many_shot": many_shot,
    "scbench_summary": summary,
    "scbench_mf": numbers,
    "scbench_summary_with_needles": summary_with_needles,
    "scbench_repoqa_and_kv": repository_and_keys,
}
