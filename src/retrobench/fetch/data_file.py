"""What is known of a data file before it is here: its origin, revision, digest and terms."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

Rows = Iterable[Mapping[str, Any]]  # of a data set of the Hub
Convert = Callable[[Rows], Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class DataFile:
    """One file of a benchmark.

    ``file`` is downloaded as it is; without it the data set's ``split`` is loaded and converted.
    ``revision`` and ``sha256`` are fixed where they are known; else the newest revision is taken,
    and the manifest says which it was. ``originals`` are further names that the file may have in
    ``--from``. They need no conversion. ``about_mb`` is the file's size as its origin shows it; 0:
    not known before it is here.
    """

    repo: str
    licence: str
    about_mb: int = 0
    originals: tuple[str, ...] = ()
    file: str = ""
    config: str = ""
    split: str = ""
    convert: Convert | None = None
    revision: str = ""
    sha256: str = ""
