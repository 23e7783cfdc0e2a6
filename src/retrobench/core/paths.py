"""Where files are kept that can be made again; files that are written whole or not at all."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def cache_root() -> Path:
    """``$RETROBENCH_CACHE``, or ``retrobench`` in the user's cache folder."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(os.environ.get("RETROBENCH_CACHE") or Path(base) / "retrobench")


def check_output(option: str, path: Path) -> None:
    """ValueError for a file that cannot be written; makes the folder that it goes into."""
    reason = ""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        reason = str(error.strerror)
    if path.is_dir():
        reason = "it is a folder"
    elif not reason and not os.access(path if path.exists() else path.parent, os.W_OK):
        reason = "no right to write there"
    if reason:
        raise ValueError(f"{option} {path}: cannot be written ({reason}); name a file elsewhere")


def check_folder(option: str, folder: Path) -> None:
    """Make a folder; ValueError naming the option if nothing can be written there."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / f".write-{os.getpid()}"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise ValueError(
            f"{option}={folder}: cannot be written ({error.strerror}); "
            f"choose another with {option}=FOLDER"
        ) from error


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A new file beside ``path``, to be written inside: in the end it takes its place at once.

    After an error it is gone, and ``path`` is as it was.
    """
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        yield temporary
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def replace_text(path: Path, text: str) -> None:
    """Write a file so that a crash leaves either the old or the new content."""
    with replacing(path) as temporary, temporary.open("w", encoding="utf-8") as stream:
        stream.write(text)
        stream.flush()
        os.fsync(stream.fileno())


def regular(path: Path) -> Path:
    """The path itself; ValueError for a folder, a pipe or a device, which may never end."""
    if not path.is_file():
        what = "a folder" if path.is_dir() else "no regular file"
        raise ValueError(f"{path} is {what}: put the file itself there")
    return path
