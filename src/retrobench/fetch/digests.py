"""SHA-256 of files, and the error for a file that is not the one it should be."""

import hashlib
from collections.abc import Iterable
from functools import lru_cache
from pathlib import Path


def sha256(path: Path) -> str:
    """Digest of a file's content, 64 hex digits."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def require(path: Path, expected: str) -> None:
    """ValueError unless the file has the digest ``expected``."""
    if (found := sha256(path)) != expected:
        raise ValueError(
            f"{path} is damaged or another file: SHA-256 {found[:16]}..., expected "
            f"{expected[:16]}...; delete it and fetch again"
        )


def of_file(path: Path) -> str:
    """SHA-256 of a file, read again only after a change."""
    status = path.stat()
    return _of_file(path.resolve(), status.st_size, status.st_mtime_ns)


@lru_cache(maxsize=4)
def _of_file(path: Path, size: int, changed_ns: int) -> str:
    return sha256(path)


def of_files(paths: Iterable[Path]) -> str:
    """One digest of names and contents, 16 hex digits; read again only after a change."""
    return _of_files(tuple((p, p.stat().st_size, p.stat().st_mtime_ns) for p in paths))


@lru_cache(maxsize=4)
def _of_files(files: tuple[tuple[Path, int, int], ...]) -> str:
    hasher = hashlib.sha256()
    for path, _, _ in files:
        hasher.update(path.name.encode())
        with path.open("rb") as stream:
            while block := stream.read(1 << 24):
                hasher.update(block)
    return hasher.hexdigest()[:16]
