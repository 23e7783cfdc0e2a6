"""Append-only results: one folder per cell, named by its key.

``cell.json`` says what the cell is, ``rows.jsonl`` holds one row per sample (flushed and fsynced
one by one), ``status.json`` its state. The newest row of a sample counts. A lock held by the
operating system keeps two processes from writing the same cell; it dies with its holder.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from retrobench.core.cell import Cell

if TYPE_CHECKING:
    import pandas as pd

OK = "ok"
FINAL = frozenset({OK, "unsupported_by_model", "prompt_too_long"})
MAX_ATTEMPTS = 3  # after so many failures a sample is quarantined


@dataclass(slots=True)
class CellRows:
    """Rows of one cell: the newest per sample, and how often each sample failed."""

    rows: dict[str, dict[str, Any]] = field(default_factory=dict)
    failures: dict[str, int] = field(default_factory=dict)
    lines: int = 0  # rows ever written, repeated ones included
    recovered: int = 0  # unreadable lines skipped (a crash may leave a torn last line)

    def quarantined(self) -> set[str]:
        """Sample ids that failed too often to be tried again unasked."""
        return {
            sample
            for sample, row in self.rows.items()
            if row["status"] not in FINAL and self.failures.get(sample, 0) >= MAX_ATTEMPTS
        }

    def settled(self) -> set[str]:
        """Sample ids that need no further run: final, or quarantined after repeated failures."""
        final = {sample for sample, row in self.rows.items() if row["status"] in FINAL}
        return final | self.quarantined()


class Locked(RuntimeError):
    """Another process is running this cell."""


class RowWriter:
    """Appends rows to one cell; each is on disk when ``append`` returns."""

    def __init__(self, stream: IO[str]) -> None:
        self._stream = stream

    def append(self, row: Mapping[str, Any]) -> None:
        """Write one row, flush and fsync. NaN is refused: it is no JSON."""
        self._stream.write(json.dumps(row, allow_nan=False) + "\n")
        self._stream.flush()
        os.fsync(self._stream.fileno())


class ResultStore:
    """A results folder."""

    def __init__(self, root: str | Path) -> None:
        self.root = Path(root)

    def prepare(self) -> None:
        """Create the folder; ValueError if it cannot be written."""
        try:
            self.root.mkdir(parents=True, exist_ok=True)
            probe = self.root / f".write-{os.getpid()}"
            probe.touch()
            probe.unlink()
        except OSError as error:
            raise ValueError(
                f"results_dir={self.root}: cannot be written ({error.strerror}); "
                "choose another with results_dir=FOLDER"
            ) from error

    def cell_keys(self) -> list[str]:
        """Keys of all cells, sorted."""
        return sorted(path.parent.name for path in self.root.glob("*/cell.json"))

    def find(self, prefix: str) -> str:
        """The one key that begins with ``prefix``; ValueError if none or several do."""
        matches = [key for key in self.cell_keys() if key.startswith(prefix)]
        if len(matches) != 1:
            what = f"{len(matches)} cells begin so" if matches else "no such cell"
            raise ValueError(f"{prefix}: {what} in {self.root}; `retrobench ls` lists them")
        return matches[0]

    def cell(self, key: str) -> dict[str, Any]:
        """What a cell is: its parts, labels and provenance."""
        path = self.root / key / "cell.json"
        if not path.exists():
            raise ValueError(f"{key}: no such cell in {self.root}; `retrobench ls` lists them")
        return json.loads(path.read_text())

    def status(self, key: str) -> dict[str, Any]:
        """The cell's last status (``new`` or ``partial`` if none was written)."""
        path = self.root / key / "status.json"
        if path.exists():
            return json.loads(path.read_text())
        return {"state": "partial" if (self.root / key / "rows.jsonl").exists() else "new"}

    def set_status(self, key: str, status: Mapping[str, Any]) -> None:
        """Replace the cell's status atomically."""
        _replace(self.root / key / "status.json", json.dumps(status, indent=1))

    def refuse(self, cell: Cell, facts: Mapping[str, Any], reason: str, message: str) -> None:
        """Record a cell that cannot run here, without rows; ``reason`` as a row's status."""
        folder = self.root / cell.key
        folder.mkdir(parents=True, exist_ok=True)
        self._describe(cell, facts)
        self.set_status(cell.key, {"state": "impossible", "reason": reason, "message": message})

    def keep(self, key: str, name: str, text: str) -> None:
        """A text file beside the cell's rows, replaced atomically."""
        _replace(self.root / key / name, text)

    def _describe(self, cell: Cell, facts: Mapping[str, Any]) -> None:
        about = {"key": cell.key, "cell": cell.plain(), **facts}
        _replace(self.root / cell.key / "cell.json", json.dumps(about, indent=1))

    def read(self, key: str) -> CellRows:
        """All rows of a cell; unreadable lines are skipped and counted."""
        found = CellRows()
        path = self.root / key / "rows.jsonl"
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

    @contextlib.contextmanager
    def writer(self, cell: Cell, facts: Mapping[str, Any]) -> Iterator[RowWriter]:
        """Lock the cell and open its rows for appending. ``facts`` go beside the cell's parts.

        Raises ``Locked`` if another process holds the cell. A torn last line is ended first.
        """
        folder = self.root / cell.key
        folder.mkdir(parents=True, exist_ok=True)
        with (folder / ".lock").open("w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise Locked(
                    f"cell {cell.key} is being run by another process; ask again when it is done"
                ) from error
            self._describe(cell, facts)
            path = folder / "rows.jsonl"
            torn = path.exists() and _is_torn(path)
            with path.open("a", encoding="utf-8") as stream:
                if torn:
                    stream.write("\n")
                yield RowWriter(stream)

    def columns(
        self, names: Sequence[str] | None = None, keys: Sequence[str] | None = None
    ) -> pd.DataFrame:
        """Newest rows as flat columns (see ``store.columns``), of all cells or of ``keys``."""
        from retrobench.store.columns import read_columns

        return read_columns(self, names, keys)

    def cells(self) -> pd.DataFrame:
        """One line per cell: key, labels, state, message, time."""
        import pandas as pd

        lines = []
        for key in self.cell_keys():
            status = self.status(key)
            facts = {name: status.get(name) for name in ("state", "message", "attempts", "time")}
            lines.append({"key": key, **self.cell(key).get("labels", {}), **facts})
        return pd.DataFrame(lines)

    def frame(self, keys: list[str] | None = None) -> pd.DataFrame:
        """Newest rows of cells as one DataFrame, with the cells' labels as columns."""
        import pandas as pd

        rows = []
        for key in self.cell_keys() if keys is None else keys:
            labels = self.cell(key).get("labels", {})
            for row in self.read(key).rows.values():
                rows.append({"key": key, **labels, **row})
        return pd.DataFrame(rows)


def _is_torn(path: Path) -> bool:
    """Whether the last line lacks its end."""
    with path.open("rb") as stream:
        if not stream.seek(0, os.SEEK_END):
            return False
        stream.seek(-1, os.SEEK_END)
        return stream.read(1) != b"\n"


def _replace(path: Path, text: str) -> None:
    """Write a file so that a crash leaves either the old or the new content."""
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    with temporary.open("w", encoding="utf-8") as stream:
        stream.write(text)
        stream.flush()
        os.fsync(stream.fileno())
    temporary.replace(path)
