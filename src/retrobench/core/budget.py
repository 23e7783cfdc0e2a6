"""Budget: how many context tokens a KV head may attend exactly in one decode step."""

import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Self

from retrobench.core.shapes import KVShape

_UNITS = {
    "%": "frac",
    "tok": "tokens",
    "b": "bytes",
    "kib": "bytes",
    "mib": "bytes",
    "gib": "bytes",
}
_TOP_P = re.compile(r"\s*top_p\s*:\s*([0-9]+(?:\.[0-9]+)?)\s*(?:@(.*))?", re.S)
_FLOAT_DIGITS = 15  # decimal digits that a float surely keeps
_SCALE = {"b": 1, "kib": 1024, "mib": 1024**2, "gib": 1024**3}


@dataclass(frozen=True, slots=True)
class Budget:
    """One definition for every method: exactly attended context tokens per KV head and step.

    Static tokens (sinks, local window) are inside the budget. A selector that picks a different
    set for each query head is charged per query head. Estimation and index reads are not tokens:
    the byte counters charge them.

    An adaptive budget (unit ``top_p``) is a share of attention mass: in each step every head takes
    as few tokens as hold it by the method's estimate, and no more than ``cap``, if there is one
    (Twilight, arXiv 2502.02770).
    """

    value: float
    unit: str  # "frac" | "tokens" | "bytes" (K and V, all layers and KV heads) | "top_p"
    cap: Self | None = None  # of top_p

    def __post_init__(self) -> None:
        if self.unit not in {*_UNITS.values(), "top_p"}:
            raise ValueError(f"budget: {self.unit!r} is no unit; use frac, tokens, bytes or top_p")
        if not 0 < self.value < math.inf:
            raise ValueError(f"budget: {self} must be finite and greater than 0")
        if self.unit == "frac" and self.value > 1:
            raise ValueError(f"budget: {self} is larger than the context (at most 100%)")
        if self.unit == "top_p" and self.value > 1:
            raise ValueError(f"budget: {self} is more than all attention mass (at most top_p:1)")
        if self.cap is not None and (self.unit != "top_p" or self.cap.unit == "top_p"):
            raise ValueError("budget: only top_p has a cap, which is a share, tokens or bytes")

    @property
    def top_p(self) -> float | None:
        """The mass of an adaptive budget; None for a fixed one."""
        return self.value if self.unit == "top_p" else None

    @classmethod
    def parse(cls, text: str | int | float | Self) -> Self:
        """``2%``, ``1024tok``, ``64MiB`` (KiB, GiB, B), ``top_p:0.95`` or ``top_p:0.95@25%``.

        ValueError for anything else.
        """
        if isinstance(text, cls):
            return text
        if adaptive := _TOP_P.fullmatch(str(text)):
            mass, cap = adaptive.groups()
            return cls(float(mass), "top_p", None if cap is None else cls.parse(cap))
        match = re.fullmatch(r"\s*([0-9]+(?:\.[0-9]+)?)\s*(%|[A-Za-z]+)\s*", str(text))
        unit = match.group(2).lower() if match else ""
        if match is None or unit not in _UNITS:
            raise ValueError(
                f"budget: {text!r} is not a budget. Write a share of the context (2%), "
                "tokens per KV head (1024tok), bytes of the whole cache (64MiB), or a share of "
                "attention mass (top_p:0.95; top_p:0.95@25% takes 25% of the context at most)."
            )
        number = match.group(1)
        if unit == "%":
            return cls(_share(number), "frac")
        return cls(float(number) * _SCALE.get(unit, 1), _UNITS[unit])

    def tokens(self, context_tokens: int, kv_bytes_per_token: int) -> int:
        """Tokens per KV head for a context; all of it where the budget covers it.

        ``kv_bytes_per_token`` are the K and V bytes of one token over all layers and KV heads. Of
        an adaptive budget these are the most that a head may take.
        """
        if self.unit == "top_p":
            cap = self.cap
            return context_tokens if cap is None else cap.tokens(context_tokens, kv_bytes_per_token)
        if self.unit == "frac":
            return max(1, round(self.value * context_tokens))
        tokens = self.value if self.unit == "tokens" else self.value / kv_bytes_per_token
        return max(1, int(min(tokens, context_tokens)))

    def allocate(
        self, shape: KVShape, weight_LG: Sequence[Sequence[float]] | None = None
    ) -> list[list[list[int]]]:
        """Tokens of every layer, row and KV head, ``tokens_LBG``: equal shares, or by weight.

        The tokens of a row add up to what the budget gives to all its layers and heads; no head
        gets more than the context. ``weight_LG`` says how layers and heads share them.
        """
        layers, groups = len(shape.layers), shape.num_kv_heads
        weight = weight_LG or [[1.0] * groups] * layers
        flat = [w for row in weight for w in row]
        found = []
        for context in shape.contexts:
            total = self.tokens(context, shape.kv_bytes_per_token) * layers * groups
            found.append(shares_of(total, flat, context))
        return [
            [shares[layer * groups : (layer + 1) * groups] for shares in found]
            for layer in range(layers)
        ]

    def __str__(self) -> str:
        """A label that ``parse`` reads back as the same budget, so distinct budgets differ."""
        exact = Decimal(repr(float(self.value)))
        if self.unit == "top_p":
            return f"top_p:{_plain(exact)}" + ("" if self.cap is None else f"@{self.cap}")
        if self.unit == "frac":
            return f"{_percent(self.value, exact)}%"
        if self.unit == "tokens":
            return f"{_plain(exact)}tok"
        short = f"{self.value / _SCALE['mib']:g}"
        if "e" not in short and float(short) * _SCALE["mib"] == self.value:
            return f"{short}MiB"
        return f"{_plain(exact)}B"


def row_budgets(
    shape: KVShape, budget: Budget | None, always: int = 0, why: str = ""
) -> Iterator[tuple[int, int | None]]:
    """Of each row its context, and its tokens in a budget (None without one).

    ValueError for a budget that leaves nothing beside the ``always`` attended tokens; ``why`` says
    of which options they come.
    """
    for context in shape.contexts:
        total = None if budget is None else budget.tokens(context, shape.kv_bytes_per_token)
        if total is not None and total <= always and total < context:
            raise ValueError(
                f"budget: {budget} is {total} tokens of a context of {context}, but {why}; raise "
                "the budget or shrink what is always attended"
            )
        yield context, total


def _share(percent: str) -> float:
    """A share from its percentage. Many digits are exact: not every share is a float over 100."""
    digits = len(percent.replace(".", "").lstrip("0"))
    return float(f"{percent}e-2") if digits > _FLOAT_DIGITS else float(percent) / 100


def _percent(share: float, exact: Decimal) -> str:
    """The shortest percentage that ``_share`` reads as this share."""
    for text in (f"{share * 100:g}", _plain(Decimal(repr(share * 100)))):
        if "e" not in text and _share(text) == share:
            return text
    text = f"{exact.scaleb(2):f}"
    missing = _FLOAT_DIGITS + 1 - len(text.replace(".", "").lstrip("0"))
    return text + ("" if "." in text else ".") + "0" * max(0, missing)


def _plain(number: Decimal) -> str:
    """All digits, without exponent and trailing zeros."""
    text = f"{number:f}"
    return text.rstrip("0").rstrip(".") if "." in text else text


def shares_of(total: int, weights: Sequence[float], limit: int) -> list[int]:
    """Whole numbers up to ``limit`` that follow the weights and add up to ``total``."""
    shares, open_ends = [0.0] * len(weights), set(range(len(weights)))
    left = float(total)
    while open_ends:  # what a full share cannot take goes to the others
        scale = sum(weights[i] for i in open_ends)
        wanted = {
            i: left * weights[i] / scale if scale else left / len(open_ends) for i in open_ends
        }
        full = {i for i in open_ends if wanted[i] >= limit}
        for i in full or open_ends:
            shares[i] = limit if full else wanted[i]
        if not full:
            break
        left -= limit * len(full)
        open_ends -= full
    whole = [int(share) for share in shares]
    by_rest = sorted(range(len(shares)), key=lambda i: whole[i] - shares[i])
    for i in by_rest[: total - sum(whole)]:
        whole[i] += 1
    return whole
