"""Reads LongBench's records from local files. A bad record is kept, with its file and line."""

import re
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from retrobench.tasks import record_files
from retrobench.tasks.local_files import (
    check_content,
    fetch_command,
    is_text_list,
    read_bytes,
    regular,
    text_field,
)
from retrobench.tasks.longbench.prompts import DATASETS, Dataset
from retrobench.tasks.record_files import BadRecord
from retrobench.tasks.scorers.longbench import PARAGRAPHS

_HINT = f"fetch it with {fetch_command('longbench')} or put data.zip or its files there"


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


def content_hash(path: Path, member: str | None) -> str:
    """Hash of a file's content. For a member of an archive: its recorded checksum and size."""
    if member is None:
        return record_files.content_hash(path)
    with _open(path, member) as (_, info):
        return f"{info.CRC:08x}:{info.file_size}"


def read(root: str | None, name: str) -> list[Record | BadRecord]:
    """All records of a data set (``qasper``, or ``qasper_e`` of LongBench-E), in file order.

    ValueError for a file that is missing, empty or damaged, or a pointer of git-lfs.
    """
    path, member = source(root, name)
    where = f"{path}:{member}" if member else str(path)
    task = name.removesuffix("_e")
    if member is None:
        data = read_bytes(path)
    else:
        with _open(path, member) as (archive, info):
            data = archive.read(info)
    check_content(path, data, _HINT)
    found: list[Record | BadRecord] = []
    for number, raw in record_files.json_lines(data, where, _HINT):
        try:
            found.append(raw if isinstance(raw, BadRecord) else _record(raw, task))
        except ValueError as error:
            found.append(BadRecord(number, f"{where} line {number}: {error}"))
    return found


@contextmanager
def _open(path: Path, member: str) -> Iterator[tuple[zipfile.ZipFile, zipfile.ZipInfo]]:
    """An archive and the entry of one member; ValueError for what is missing or damaged."""
    try:
        with zipfile.ZipFile(regular(path)) as archive:
            yield archive, archive.getinfo(member)
    except KeyError as error:
        raise ValueError(f"{path} has no {member}") from error
    except (zipfile.BadZipFile, zlib.error, EOFError) as error:
        raise ValueError(f"{path} is no whole zip archive ({error}): {_HINT}") from error


def _record(raw: Mapping[str, Any], task: str) -> Record:
    dataset = DATASETS[task]
    context, question, name = (text_field(raw, field) for field in ("context", "input", "_id"))
    answers, classes = raw.get("answers"), raw.get("all_classes") or []
    if not is_text_list(answers) or not answers:
        raise ValueError("'answers' must be a list of at least one string")
    words = raw.get("length") or 0
    if not isinstance(words, int):
        raise ValueError("'length' must be a whole number")
    if not is_text_list(classes) or (dataset.metric == "classification" and not classes):
        raise ValueError("'all_classes' must be a list of strings")
    if (form := PARAGRAPHS.get(dataset.metric)) and not all(re.search(form, a) for a in answers):
        raise ValueError(f"'answers' must name a paragraph, got {answers[0][:40]!r}")
    _check_origin(raw, task, dataset)
    return Record(
        id=name,
        context=context,
        input=question,
        answers=tuple(answers),
        all_classes=tuple(classes),
        words=words,
    )


def _check_origin(raw: Mapping[str, Any], task: str, dataset: Dataset) -> None:
    """ValueError for a record of another data set or language: its file was swapped."""
    named = str(raw.get("dataset") or task)
    if named.removesuffix("_e") != task:
        raise ValueError(f"a record of {named!r} in the file of {task!r}")
    language = str(raw.get("language") or dataset.language)
    natural = language in ("en", "zh")
    if language != dataset.language and (natural or dataset.language != "code"):
        raise ValueError(f"language {language!r} where {task!r} has {dataset.language!r}")
