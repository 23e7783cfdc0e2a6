"""Cell: everything that decides a result, and its content-addressed key."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from functools import cached_property
from typing import Any, Self


def canonical(value: Any) -> str:
    """Canonical JSON: sorted keys, no spaces, no NaN."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)


def digest(value: Any, length: int = 16) -> str:
    """Hex digest of the canonical JSON of ``value``."""
    return text_hash(canonical(value), length)


def text_hash(text: str, length: int = 16) -> str:
    """Hex digest of a text."""
    return hashlib.sha256(text.encode()).hexdigest()[:length]


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One model x method x task x protocol x measure at one budget.

    Each part is a plain JSON mapping. The number of samples asked for is not part of the key, so
    that asking for more continues the same cell; sample ids do not depend on it.
    """

    model: Mapping[str, Any]
    method: Mapping[str, Any]
    task: Mapping[str, Any]
    engine: Mapping[str, Any] = field(default_factory=dict)
    protocol: str = "query_aware"
    measure: tuple[str, ...] = ("score",)
    budget: str | None = None
    code: str = ""

    def plain(self) -> dict[str, Any]:
        """The cell as JSON-ready values."""
        return {**asdict(self), "measure": list(self.measure)}

    @cached_property
    def key(self) -> str:
        """16 hex digits of the cell's canonical JSON."""
        return digest(self.plain())

    def why(self, other: Self | Mapping[str, Any]) -> list[str]:
        """Field-level differences to a cell (or its plain form): ``field: ours -> theirs``."""
        theirs = other if isinstance(other, Mapping) else other.plain()
        ours_flat, theirs_flat = _flatten(self.plain()), _flatten(theirs)
        return [
            f"{name}: {_show(ours_flat, name)} -> {_show(theirs_flat, name)}"
            for name in sorted(ours_flat.keys() | theirs_flat.keys())
            if _show(ours_flat, name) != _show(theirs_flat, name)
        ]


def _flatten(value: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, item in value.items():
        if isinstance(item, Mapping):
            flat.update(_flatten(item, f"{prefix}{name}."))
        else:
            flat[prefix + name] = item
    return flat


def _show(flat: Mapping[str, Any], name: str) -> str:
    return json.dumps(flat[name]) if name in flat else "(absent)"
