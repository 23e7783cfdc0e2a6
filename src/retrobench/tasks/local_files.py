"""Data files on disk: where they are looked for, how they are read, what a record must hold."""

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any, TypeGuard

from retrobench.core.paths import regular

_LFS_POINTER = b"version https://git-lfs"


def fetch_command(benchmark: str) -> str:
    """The command that fetches a benchmark's data, as code in an error message."""
    return f"`retrobench fetch {benchmark}`"


def locate(root: str | None, names: tuple[str, ...]) -> Path | None:
    """The first of RULER's files ``names`` under the data root or its ``ruler`` folder."""
    if root is None:
        return None
    paths = (folder / name for folder in (Path(root), Path(root) / "ruler") for name in names)
    return next((path for path in paths if os.path.lexists(path)), None)  # dead links too


def missing(root: str | None, names: tuple[str, ...]) -> ValueError:
    """The error for a missing file of RULER: its name, the folders, how to get it."""
    return ValueError(
        f"{' or '.join(names)} not found in {root} or {root}/ruler. Fetch it with "
        f"{fetch_command('ruler')}, point data.root at a folder that has it, or allow "
        "task.substitute=true"
    )


def check_content(path: Path, content: bytes, advice: str) -> None:
    """ValueError if a file holds a git-lfs pointer in place of the data."""
    if content.startswith(_LFS_POINTER):
        raise ValueError(f"{path} is a git-lfs pointer, not the data: {advice}")


def read_bytes(path: Path) -> bytes:
    """Content of a data file; ValueError naming it if it cannot be read."""
    try:
        return regular(path).read_bytes()
    except OSError as error:
        raise ValueError(f"{path} cannot be read ({error.strerror}); check its rights") from error


def read_text(path: Path) -> str:
    """Content of a UTF-8 file; ValueError naming it if it is none."""
    try:
        return read_bytes(path).decode("utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8 ({error.reason}); save it as UTF-8") from error


def read_json(path: Path, benchmark: str) -> Any:
    """Content of a JSON file; ValueError naming the file if it is none."""
    content = read_bytes(path)
    check_content(path, content, "run `git lfs pull` there")
    try:
        return json.loads(content)
    except (ValueError, RecursionError) as error:
        advice = f"fetch it again with {fetch_command(benchmark)}"
        raise ValueError(f"{path} is not JSON ({error}); {advice}") from error


@contextmanager
def shaped(path: Path, benchmark: str, form: str) -> Iterator[None]:
    """ValueError naming the file, and the ``form`` it must have, for any misfit inside."""
    try:
        yield
    except (ValueError, TypeError, KeyError, AttributeError, IndexError) as error:
        other = f"there is no {error}" if isinstance(error, KeyError) else "it has another shape"
        why = str(error) if isinstance(error, ValueError) else other
        raise ValueError(
            f"{path} must hold {form} ({why}); fetch it again with {fetch_command(benchmark)}"
        ) from error


@cache
def shipped(module: str, name: str = "prompts.json") -> Any:
    """A JSON file that lies beside a module, which is named by its ``__file__``."""
    return json.loads(Path(module).with_name(name).read_text("utf-8"))


def text_field(raw: Mapping[str, Any], name: str) -> str:
    """A record's field that must hold text."""
    if not isinstance(raw.get(name), str):
        raise ValueError(f"{name!r} is missing or not a string")
    return raw[name]


def four_options(raw: Mapping[str, Any]) -> list[str]:
    """A record's ``options``, the texts of a multiple choice."""
    options = raw.get("options")
    if not is_text_list(options) or len(options) != 4:
        raise ValueError("'options' must be a list of four strings")
    return options


def some_text(value: Any, what: str) -> str:
    """A value that must be text with a word in it."""
    if not isinstance(value, str) or not value.strip():
        raise ValueError(f"{what}: there is no text in it")
    return value


def is_text_list(value: Any) -> TypeGuard[list[str]]:
    """Whether a value is a list of strings only."""
    return isinstance(value, list) and all(isinstance(item, str) for item in value)
