"""Truncation of a rendered prompt by its ids, as SCBench's script does it."""

from collections.abc import Mapping
from typing import Any


def cut_ids(
    ids: list[int], context: int, rule: Mapping[str, Any] | None
) -> tuple[list[int], int] | None:
    """A prompt and its context in equal halves of what the rule keeps; None if it is short enough.

    ``of``: the whole rendered ``prompt``, or its ``context`` alone (SCBench).
    """
    if not rule or "of" not in rule:
        return None
    part, rest = (ids, []) if rule["of"] == "prompt" else (ids[:context], ids[context:])
    if len(part) <= rule["tokens"]:
        return None
    half = rule["tokens"] // 2
    kept = [*part[:half], *part[-half:], *rest]
    return kept, len(kept) - (len(ids) - context)
