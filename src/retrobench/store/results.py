"""Append-only results: one folder per cell, named by its key.

``cell.json`` says what the cell is, ``rows.jsonl`` holds one row per sample (flushed and fsynced
one by one), ``status.json`` its state. All carry digests (``store.cell_files``). The newest row of
a sample counts. A lock held by the operating system keeps two processes from writing the same cell;
it dies with its holder.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from retrobench.core.cell import Cell
from retrobench.core.paths import check_folder, regular, replace_text
from retrobench.store import cell_files
from retrobench.store.row_file import CellRows, RowWriter, is_torn, read_rows

if TYPE_CHECKING:
    import pandas as pd


class Locked(RuntimeError):
    """Another process is running this cell."""


class ResultStore:
    """A results folder."""

    def __init__(self, root: str | Path) -> None:
        self.root = Path(root)

    def prepare(self) -> None:
        """Create the folder; ValueError if it cannot be written."""
        check_folder("results_dir", self.root)

    def cell_keys(self) -> list[str]:
        """Keys of all cells, sorted."""
        return sorted(path.parent.name for path in self.root.glob("*/cell.json"))

    def sound_keys(self, keys: Sequence[str] | None = None) -> list[str]:
        """Keys (of ``keys``, or all) whose ``cell.json`` can be trusted; see ``problems``."""
        found = []
        for key in self.cell_keys() if keys is None else keys:
            with contextlib.suppress(ValueError):
                self.cell(key)
                found.append(key)
        return found

    def problems(self, keys: Sequence[str] | None = None) -> list[str]:
        """What is wrong with the files of cells: a line each, naming the file."""
        from retrobench.store.columns import read_problems

        return read_problems(self.root, keys)

    def is_intact(self, key: str) -> bool | None:
        """Whether a cell's files are as its last run left them; None if an older version did."""
        folder = self.root / key
        try:
            cell_files.read_about(folder)
        except ValueError:
            return False
        known = cell_files.read_status(folder).get("content")
        return None if known is None else cell_files.still_has(folder, known)

    def find(self, prefix: str) -> str:
        """The one key that begins with ``prefix``; ValueError if none or several do."""
        matches = [key for key in self.cell_keys() if key.startswith(prefix)]
        if len(matches) != 1:
            what = f"{len(matches)} cells begin so" if matches else "no such cell"
            raise ValueError(f"{prefix}: {what} in {self.root}; `retrobench ls` lists them")
        return matches[0]

    def cell(self, key: str) -> dict[str, Any]:
        """What a cell is: its parts, labels and provenance. ValueError if it was changed since."""
        path = self.root / key / "cell.json"
        if not path.exists():
            raise ValueError(f"{key}: no such cell in {self.root}; `retrobench ls` lists them")
        return cell_files.read_about(path.parent)

    def status(self, key: str) -> dict[str, Any]:
        """The cell's last status (``new`` or ``partial`` if none was written)."""
        return cell_files.read_status(self.root / key)

    def set_status(self, key: str, status: Mapping[str, Any]) -> None:
        """Replace the cell's status atomically, with the hash of its rows."""
        whole = {**status, "content": cell_files.content(self.root / key)}
        replace_text(self.root / key / "status.json", json.dumps(whole, indent=1))

    def refuse(self, cell: Cell, about: Mapping[str, Any], reason: str, message: str) -> None:
        """Record a cell that cannot run here, without rows; ``reason`` as a row's status."""
        folder = self.root / cell.key
        folder.mkdir(parents=True, exist_ok=True)
        self._describe(cell, about)
        self.set_status(cell.key, {"state": "impossible", "reason": reason, "message": message})

    def keep(self, key: str, name: str, text: str) -> None:
        """A text file beside the cell's rows, replaced atomically."""
        replace_text(self.root / key / name, text)

    def _describe(self, cell: Cell, about: Mapping[str, Any]) -> None:
        whole = {"key": cell.key, "cell": cell.plain(), **about}
        replace_text(self.root / cell.key / "cell.json", cell_files.describe(whole))

    def read(self, key: str) -> CellRows:
        """All rows of a cell; damaged lines are left out and told."""
        return read_rows(self.root / key / cell_files.ROWS)

    @contextlib.contextmanager
    def writer(self, cell: Cell, about: Mapping[str, Any]) -> Iterator[RowWriter]:
        """Lock the cell and open its rows for appending. ``about`` joins ``cell.json``.

        Raises ``Locked`` if another process holds the cell. A torn last line is ended first.
        """
        folder = self.root / cell.key
        folder.mkdir(parents=True, exist_ok=True)
        for path in (lock_path := folder / ".lock", folder / cell_files.ROWS):
            if path.exists():
                regular(path)
        with lock_path.open("w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise Locked(
                    f"cell {cell.key} is being run by another process; ask again when it is done"
                ) from error
            self._describe(cell, about)
            path = folder / cell_files.ROWS
            torn = is_torn(path)
            with path.open("a", encoding="utf-8") as stream:
                if torn:
                    stream.write("\n")
                yield RowWriter(stream)

    def columns(
        self, names: Sequence[str] | None = None, keys: Sequence[str] | None = None
    ) -> pd.DataFrame:
        """Newest rows as flat columns (see ``store.columns``), of all cells or of ``keys``."""
        from retrobench.store.columns import read_columns  # brings pandas, slow to import

        return read_columns(self.root, names, keys)

    def cells(self) -> pd.DataFrame:
        """One line per sound cell: key, labels, state, message, time."""
        import pandas as pd

        lines = []
        for key in self.sound_keys():
            status = self.status(key)
            state = {name: status.get(name) for name in ("state", "message", "attempts", "time")}
            lines.append({"key": key, **self.cell(key).get("labels", {}), **state})
        return pd.DataFrame(lines)
