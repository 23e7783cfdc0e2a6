"""Budget: how many context tokens a KV head may attend exactly in one decode step."""

from __future__ import annotations

import re
from dataclasses import dataclass

_UNITS = {
    "%": "frac",
    "tok": "tokens",
    "b": "bytes",
    "kib": "bytes",
    "mib": "bytes",
    "gib": "bytes",
}
_SCALE = {"b": 1, "kib": 1024, "mib": 1024**2, "gib": 1024**3}


@dataclass(frozen=True, slots=True)
class Budget:
    """One definition for every method: exactly attended context tokens per KV head and step.

    Static tokens (sinks, local window) are inside the budget. A selector that picks a different
    set for each query head is charged per query head. Estimation and index reads are not tokens:
    the byte ledger charges them.
    """

    value: float
    unit: str  # "frac" | "tokens" | "bytes" (K and V of one KV head and layer)

    @classmethod
    def parse(cls, text: str | int | float | Budget) -> Budget:
        """``2%``, ``1024tok`` or ``64MiB`` (KiB, GiB, B) to a Budget; ValueError otherwise."""
        if isinstance(text, Budget):
            return text
        match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*(%|[A-Za-z]+)\s*", str(text))
        unit = match.group(2).lower() if match else ""
        if match is None or unit not in _UNITS:
            raise ValueError(
                f"budget: {text!r} is not a budget. Write a share of the context (2%), "
                "tokens per KV head (1024tok) or bytes of the whole cache (64MiB)."
            )
        number = float(match.group(1))
        if number <= 0:
            raise ValueError(f"budget: {text!r} must be greater than 0")
        if unit == "%":
            if number > 100:
                raise ValueError(f"budget: {text!r} is larger than the context (at most 100%)")
            return cls(number / 100, "frac")
        if unit == "tok":
            return cls(number, "tokens")
        return cls(number * _SCALE[unit], "bytes")

    def tokens(self, context_tokens: int, kv_bytes_per_token: int) -> int:
        """Tokens per KV head for a context; ValueError if the budget exceeds it.

        ``kv_bytes_per_token`` are the K and V bytes of one token over all layers and KV heads.
        """
        if self.unit == "frac":
            return max(1, round(self.value * context_tokens))
        tokens = self.value if self.unit == "tokens" else self.value / kv_bytes_per_token
        if tokens > context_tokens:
            raise ValueError(
                f"budget: {self} is {int(tokens)} tokens per KV head but the context has "
                f"{context_tokens}; use at most 100% (or method=full)"
            )
        return max(1, int(tokens))

    def __str__(self) -> str:
        if self.unit == "frac":
            return f"{self.value * 100:g}%"
        if self.unit == "tokens":
            return f"{self.value:g}tok"
        return f"{self.value / 1024**2:g}MiB"
