"""Texts that substitute records of several benchmarks are made of."""

import random
import uuid
from collections.abc import Callable, Sequence

from retrobench.tasks.records import Prose

_GOODS_ZH = ("茶叶", "丝绸", "瓷器", "木材")


def key_values(tokens: int, rng: random.Random, prose: Prose) -> dict[str, str]:
    """Random keys and values that fill so many tokens as a JSON object."""
    pairs: dict[str, str] = {}

    def line() -> str:
        key, value = (str(uuid.UUID(int=rng.getrandbits(128), version=4)) for _ in range(2))
        pairs[key] = value
        return f'"{key}": "{value}"'

    prose.filled(tokens, line, ", ")
    return pairs


def scattered(facts: Sequence[str], lines: list[str], rng: random.Random) -> list[str]:
    """The lines with the facts, in their order, at random places between them."""
    places = sorted(rng.choices(range(len(lines) + 1), k=len(facts)), reverse=True)
    for place, fact in zip(places, reversed(facts), strict=True):
        lines.insert(place, fact)
    return lines


def as_json(pairs: dict[str, str]) -> str:
    """Keys and values as a JSON object."""
    return "{" + ", ".join(f'"{key}": "{value}"' for key, value in pairs.items()) + "}"


def chinese(
    tokens: int, town: Callable[[int], str], rng: random.Random, prose: Prose
) -> tuple[str, dict[str, str]]:
    """Chinese sentences on what towns make, and the goods by town; ``town`` names the n-th."""
    goods: dict[str, str] = {}

    def line() -> str:
        name = town(len(goods) + 1)
        goods[name] = rng.choice(_GOODS_ZH)
        return f"{name}出产{goods[name]}，村里的人住在河边。"

    text = "".join(prose.filled(tokens, line, ""))
    return text, goods
