"""The row file of one cell: one JSON object per sample and line, appended and never rewritten.

Each line ends with a digest of itself, so that bit rot and edits show. Lines of older versions have
none; they are read and counted as unchecked.
"""

import hashlib
import json
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

OK = "ok"
ABSENT = "absent"  # more than this machine has; tried again with ``retry=true`` only
FINAL = frozenset({OK, "prompt_too_long"})
FINE = FINAL | {ABSENT}  # no failure
NOT_ASKED = "unsupported_by_model"  # of earlier versions: read as if there were no such row
MAX_ATTEMPTS = 3  # after so many failures a sample is quarantined
NUMBERS = (
    "score length batch prefill_s prefill_tokens_per_s seal_s decode_s decode_steps "
    "prompt_tokens generated_tokens"
).split()
COUNTED = ("live", "footprint", "peak_bytes")  # nested, of numbers alone
_TEXTS = ("task prediction prompt_tail message prompt_hash prefill_attention code time").split()
OBJECTS = ("meta", "rules", "method_stats", "fidelity", "search", "kernels", *COUNTED)
_DIGEST = b', "digest": "'
_TAIL_BYTES = len(_DIGEST) + 16 + len(b'"}')


@dataclass(slots=True)
class CellRows:
    """Rows of one cell: the newest per sample, and how often each sample failed."""

    rows: dict[str, dict[str, Any]] = field(default_factory=dict)
    failures: dict[str, int] = field(default_factory=dict)
    lines: int = 0  # rows ever written, repeated ones included
    unchecked: int = 0  # of them: without a digest
    damaged: list[str] = field(default_factory=list)  # lines left out (a torn last one), and why

    def quarantined(self) -> set[str]:
        """Sample ids that failed too often to be tried again unless ``retry`` says so."""
        return {
            sample
            for sample, row in self.rows.items()
            if row["status"] not in FINE and self.failures.get(sample, 0) >= MAX_ATTEMPTS
        }

    def settled(self) -> set[str]:
        """Sample ids that need no further run: no failure, or quarantined after several."""
        fine = {sample for sample, row in self.rows.items() if row["status"] in FINE}
        return fine | self.quarantined()


class RowWriter:
    """Appends rows to one cell; each is on disk when ``append`` returns."""

    def __init__(self, stream: IO[str]) -> None:
        self._stream = stream

    def append(self, row: Mapping[str, Any]) -> None:
        """Write one row with its digest, flush and fsync. NaN is refused: it is no JSON."""
        text = json.dumps(row, allow_nan=False)
        self._stream.write(f'{text[:-1]}, "digest": "{_hash(text.encode())}"}}\n')
        self._stream.flush()
        os.fsync(self._stream.fileno())


def read_rows(path: Path) -> CellRows:
    """All rows of a file; damaged lines are left out and told. Empty without a file."""
    found = CellRows()
    if not path.is_file():
        return found
    with path.open("rb") as stream:
        for number, line in enumerate(stream, 1):
            intact = is_intact(line)
            try:
                if intact is False or (intact is None and found.lines > found.unchecked):
                    raise ValueError("it is not what its digest says")
                row = _parse(line)
            except (ValueError, RecursionError) as error:
                found.damaged.append(f"line {number}: {error}")
                continue
            found.lines += 1
            found.unchecked += intact is None
            if row["status"] == NOT_ASKED:
                continue
            sample = row["sample"]
            found.rows[sample] = row
            if row["status"] not in FINE:
                found.failures[sample] = found.failures.get(sample, 0) + 1
    return found


def is_intact(line: bytes) -> bool | None:
    """Whether a line is what its digest says; None if it has no digest at its end."""
    line = line.rstrip()
    tail = line[-_TAIL_BYTES:]
    if not tail.startswith(_DIGEST):
        return None
    return _hash(line[:-_TAIL_BYTES] + b"}").encode() == tail[len(_DIGEST) : -len(b'"}')]


def all_intact(path: Path) -> bool:
    """Whether no line contradicts its digest, and none lacks it where earlier ones have it."""
    if not path.is_file():
        return False
    checked = False
    with path.open("rb") as stream:
        for line in stream:
            intact = is_intact(line)
            if intact is False or (intact is None and checked):
                return False
            checked = bool(intact)
    return True


def _hash(text: bytes) -> str:
    return hashlib.sha256(text).hexdigest()[:16]


def _parse(line: bytes) -> dict[str, Any]:
    """One row; ValueError if its fields are not of the types that tables rely on."""
    row = json.loads(line)
    if not isinstance(row, dict):
        raise ValueError("not a JSON object")
    row.pop("digest", None)
    for name in ("sample", "status"):
        if not isinstance(row.get(name), str):
            raise ValueError(f"{name!r} is missing or not text")
    for names, kind, what in ((_TEXTS, str, "text"), (OBJECTS, dict, "an object")):
        for name in names:
            if not isinstance(row.get(name), kind | None):
                raise ValueError(f"{name!r} is not {what}")
    for name in NUMBERS:
        if not _is_number(row.get(name)):
            raise ValueError(f"{name!r} is not a number: {row[name]!r:.40}")
    for name in COUNTED:
        if not _are_numbers(row.get(name)):
            raise ValueError(f"{name!r} holds something else than numbers")
    return row


def _is_number(value: Any) -> bool:
    if isinstance(value, int):
        return not isinstance(value, bool) and abs(value) < 10**300
    return value is None or (isinstance(value, float) and math.isfinite(value))


def _are_numbers(value: Any) -> bool:
    if isinstance(value, dict):
        return all(map(_are_numbers, value.values()))
    return isinstance(value, list) or _is_number(value)


def is_torn(path: Path) -> bool:
    """Whether the last line lacks its end."""
    if not path.exists():
        return False
    with path.open("rb") as stream:
        if not stream.seek(0, os.SEEK_END):
            return False
        stream.seek(-1, os.SEEK_END)
        return stream.read(1) != b"\n"
