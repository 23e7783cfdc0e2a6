"""The prose that needles are hidden in: local files, or labelled substitute prose without any."""

from functools import cached_property
from pathlib import Path

from retrobench.core.cell import text_hash
from retrobench.tasks import substitute
from retrobench.tasks.local_files import (
    locate,
    missing,
    read_json,
    read_text,
    shaped,
    some_text,
)

_ESSAYS = ("PaulGrahamEssays.json",)
_FOLDERS = ("ruler/essays", "prose")  # under the data root: UTF-8 files *.txt, in order of name


class Haystack:
    """Words of prose, repeated end to end if a prompt needs more.

    The essays come first (a file, or a folder of texts), then the user's own prose. ValueError if
    there is no file and ``allow_substitute`` is false.
    """

    def __init__(self, root: str | None, allow_substitute: bool = True) -> None:
        self._path = locate(root, _ESSAYS)
        if self._path is None and root is not None:
            folders = (Path(root) / name for name in _FOLDERS)
            self._path = next((f for f in folders if any(f.glob("*.txt"))), None)
        if self._path is None and not allow_substitute:
            raise missing(root, (*_ESSAYS, *(f"{name}/*.txt" for name in _FOLDERS)))
        self.is_substitute = self._path is None
        self.name = substitute.NAME if self._path is None else self._path.name
        self._substitute_words: list[str] = []

    @cached_property
    def _essay_words(self) -> list[str]:
        assert self._path is not None
        if self._path.name in _ESSAYS:
            whole = read_json(self._path, "ruler")
            with shaped(self._path, "ruler", '{"text": the essays}'):
                return some_text(whole["text"], "'text'").split()
        texts = {file: read_text(file) for file in sorted(self._path.glob("*.txt"))}
        for file, text in texts.items():
            if not text.strip():
                raise ValueError(f"{file}: there is no text in it; put prose there or remove it")
        return " ".join(texts.values()).split()

    @property
    def notes(self) -> tuple[str, ...]:
        """What tables must say if this is not the benchmark's own text."""
        if self.is_substitute:
            return (f"haystack: {self.name}, not the essays",)
        return ("haystack: prose of data.root, not the essays",) if self.name == "prose" else ()

    def words(self, count: int) -> list[str]:
        """The first ``count`` words."""
        if self.is_substitute:
            if len(self._substitute_words) < count:
                self._substitute_words = substitute.essay_words(2 * count)
            return self._substitute_words[:count]
        repeats = -(-count // len(self._essay_words))
        return (self._essay_words * repeats)[:count]

    @cached_property
    def fingerprint(self) -> str:
        """Hash of the text."""
        if self.is_substitute:
            return f"{substitute.KEY_NAME}:{text_hash(' '.join(substitute.essay_words(5000)))}"
        return text_hash(" ".join(self._essay_words))
