"""The row file of one cell: one JSON object per sample and line, appended and never rewritten."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

OK = "ok"
FINAL = frozenset({OK, "prompt_too_long"})
MAX_ATTEMPTS = 3  # after so many failures a sample is quarantined


@dataclass(slots=True)
class CellRows:
    """Rows of one cell: the newest per sample, and how often each sample failed."""

    rows: dict[str, dict[str, Any]] = field(default_factory=dict)
    failures: dict[str, int] = field(default_factory=dict)
    lines: int = 0  # rows ever written, repeated ones included
    recovered: int = 0  # unreadable lines skipped (a crash may leave a torn last line)

    def quarantined(self) -> set[str]:
        """Sample ids that failed too often to be tried again unless ``retry`` says so."""
        return {
            sample
            for sample, row in self.rows.items()
            if row["status"] not in FINAL and self.failures.get(sample, 0) >= MAX_ATTEMPTS
        }

    def settled(self) -> set[str]:
        """Sample ids that need no further run: final, or quarantined after repeated failures."""
        final = {sample for sample, row in self.rows.items() if row["status"] in FINAL}
        return final | self.quarantined()


class RowWriter:
    """Appends rows to one cell; each is on disk when ``append`` returns."""

    def __init__(self, stream: IO[str]) -> None:
        self._stream = stream

    def append(self, row: Mapping[str, Any]) -> None:
        """Write one row, flush and fsync. NaN is refused: it is no JSON."""
        self._stream.write(json.dumps(row, allow_nan=False) + "\n")
        self._stream.flush()
        os.fsync(self._stream.fileno())


def read_rows(path: Path) -> CellRows:
    """All rows of a file; unreadable lines are skipped and counted. Empty without a file."""
    found = CellRows()
    if not path.exists():
        return found
    with path.open(encoding="utf-8", errors="replace") as stream:
        for line in stream:
            try:
                row = json.loads(line)
                sample, status = row["sample"], row["status"]
            except (ValueError, KeyError, TypeError):
                found.recovered += 1
                continue
            found.lines += 1
            found.rows[sample] = row
            if status not in FINAL:
                found.failures[sample] = found.failures.get(sample, 0) + 1
    return found


def is_torn(path: Path) -> bool:
    """Whether the last line lacks its end."""
    if not path.exists():
        return False
    with path.open("rb") as stream:
        if not stream.seek(0, os.SEEK_END):
            return False
        stream.seek(-1, os.SEEK_END)
        return stream.read(1) != b"\n"
