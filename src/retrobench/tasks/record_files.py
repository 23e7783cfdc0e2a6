"""Records in local files: JSON lines, a JSON list, or parquet. A bad one is named by its place."""

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from retrobench.core.task import Sample
from retrobench.core.words import first_line
from retrobench.tasks.local_files import check_content, fetch_command, read_bytes, regular

SUFFIXES = (".jsonl", ".json", ".parquet")
_PARQUET_ROWS = 16  # read at a time; a row may hold megabytes


@dataclass(frozen=True, slots=True)
class BadRecord:
    """A place that holds no record: ``message`` says where and why."""

    line: int
    message: str


def error_sample(task: str, record: BadRecord) -> Sample:
    """The sample of a bad record: it becomes a row of status ``error``."""
    name = f"{task}/line-{record.line}"
    return Sample(id=name, task=task, max_new_tokens=1, error=record.message)


def content_hash(path: Path) -> str:
    """Hash of a file's content, 16 hex digits."""
    with regular(path).open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()[:16]


def find(folder: Path, name: str) -> tuple[Path, ...]:
    """The file ``name`` of any known kind, or all files of the folder ``name``; () if none."""
    paths = [folder / f"{name}{suffix}" for suffix in SUFFIXES]
    if found := [path for path in paths if path.exists() or path.is_symlink()]:
        return (found[0],)
    inside = folder / name
    if not inside.is_dir():
        return ()
    return tuple(sorted(path for path in inside.iterdir() if path.suffix in SUFFIXES))


def read(path: Path, benchmark: str) -> Iterator[tuple[int, Mapping[str, Any] | BadRecord]]:
    """Numbered records of a file, from 1. ValueError if the file as a whole cannot be read."""
    advice = f"fetch it with {fetch_command(benchmark)}"
    if path.suffix == ".parquet":
        yield from _parquet(path, advice)
        return
    data = read_bytes(path)
    check_content(path, data, advice)
    if path.suffix == ".json":
        yield from _items(path, data, advice)
    else:
        yield from json_lines(data, str(path), advice)


def json_lines(
    data: bytes, where: str, advice: str
) -> Iterator[tuple[int, Mapping[str, Any] | BadRecord]]:
    """Numbered objects of JSON lines, blank lines left out. ``where`` names them in messages."""
    if not data.strip():
        raise ValueError(f"{where} is empty: {advice}")
    for number, line in enumerate(data.split(b"\n"), 1):
        if line.strip():
            try:
                yield number, _parse(line)
            except ValueError as error:
                yield number, BadRecord(number, f"{where} line {number}: {error}")


def place(path: Path, number: int) -> str:
    """A record's place, as error messages name it."""
    word = {".jsonl": "line", ".json": "item", ".parquet": "row"}[path.suffix]
    return f"{path} {word} {number}"


def _parse(line: bytes) -> dict[str, Any]:
    """A line as a JSON object; ValueError if it is none."""
    try:
        raw = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"not JSON ({error})") from error
    if not isinstance(raw, dict):
        raise ValueError("not a JSON object")
    return raw


def _items(
    path: Path, data: bytes, advice: str
) -> Iterator[tuple[int, Mapping[str, Any] | BadRecord]]:
    if not data.strip():
        raise ValueError(f"{path} is empty: {advice}")
    try:
        items = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not JSON ({error}): {advice}") from error
    if not isinstance(items, list) or not items:
        raise ValueError(f"{path} must hold a JSON list of records: {advice}")
    for number, item in enumerate(items, 1):
        bad = BadRecord(number, f"{place(path, number)}: not a JSON object")
        yield number, item if isinstance(item, dict) else bad


def _parquet(path: Path, advice: str) -> Iterator[tuple[int, Mapping[str, Any]]]:
    import pyarrow
    from pyarrow import parquet  # takes a moment to import

    try:
        with parquet.ParquetFile(regular(path)) as file:
            number = 0
            for batch in file.iter_batches(batch_size=_PARQUET_ROWS):
                for row in batch.to_pylist():
                    number += 1
                    yield number, row
    except (pyarrow.ArrowException, OSError) as error:
        why = f"{path} is no whole parquet file ({first_line(error)})"
        raise ValueError(f"{why}: {advice}") from error
    if not number:
        raise ValueError(f"{path} is empty: {advice}")
