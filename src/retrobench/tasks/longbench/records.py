"""Reads LongBench's records from local files, checking each one."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

_HINT = "fetch it with `python scripts/fetch_data.py longbench` or put data.zip or its files there"


@dataclass(frozen=True, slots=True)
class Record:
    """One question. ``words`` is the data set's own length field."""

    id: str
    context: str
    input: str
    answers: tuple[str, ...]
    all_classes: tuple[str, ...]
    words: int


def source(root: str | None, name: str) -> tuple[Path, str | None]:
    """The file of a data set and, for an archive, the member; ValueError if there is none."""
    folder = Path(root or "data") / "longbench"
    if (folder / f"{name}.jsonl").exists():
        return folder / f"{name}.jsonl", None
    archive = folder / "data.zip"
    if archive.exists():
        return archive, f"data/{name}.jsonl"
    raise ValueError(f"LongBench's {name}.jsonl not found in {folder} (nor data.zip): {_HINT}")


def read(root: str | None, name: str) -> list[Record]:
    """All records of a data set; ValueError names file and line of a bad one."""
    path, member = source(root, name)
    where = f"{path}:{member}" if member else str(path)
    return [_record(line, f"{where} line {number}") for number, line in _lines(path, member)]


def _lines(path: Path, member: str | None) -> Iterator[tuple[int, str]]:
    if member is None:
        text = path.read_text("utf-8")
    else:
        try:
            with zipfile.ZipFile(path) as archive:
                text = archive.read(member).decode("utf-8")
        except KeyError as error:
            raise ValueError(f"{path} has no {member}") from error
        except zipfile.BadZipFile as error:
            raise ValueError(f"{path} is no whole zip archive ({error}): {_HINT}") from error
    if text.startswith("version https://git-lfs"):
        raise ValueError(f"{path} is a git-lfs pointer, not the data: {_HINT}")
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip():
            yield number, line


def _record(line: str, where: str) -> Record:
    try:
        raw = json.loads(line)
    except ValueError as error:
        raise ValueError(f"{where}: not JSON ({error})") from error
    if not isinstance(raw, dict):
        raise ValueError(f"{where}: not a JSON object")
    for field in ("context", "input", "_id"):
        if not isinstance(raw.get(field), str):
            raise ValueError(f"{where}: {field!r} is missing or not a string")
    answers = raw.get("answers")
    if not isinstance(answers, list) or not answers or not all(isinstance(a, str) for a in answers):
        raise ValueError(f"{where}: 'answers' must be a list of at least one string")
    return Record(
        id=raw["_id"],
        context=raw["context"],
        input=raw["input"],
        answers=tuple(answers),
        all_classes=tuple(raw.get("all_classes") or ()),
        words=int(raw.get("length") or 0),
    )
