"""Building many samples: in parallel ahead of their use, and remembering how long each one is."""

from __future__ import annotations

import json
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from functools import cached_property
from pathlib import Path
from typing import TypeVar

A = TypeVar("A")
B = TypeVar("B")


def ahead(function: Callable[[A], B], items: Iterable[A]) -> Iterator[B]:
    """``map`` in threads, in order, a few items ahead of the consumer.

    Tokenizers release the interpreter lock, so counting runs on all cores and beside the model.
    """
    workers = min(8, os.cpu_count() or 1)
    waiting: deque[Future[B]] = deque()
    with ThreadPoolExecutor(workers, thread_name_prefix="samples") as pool:
        try:
            for item in items:
                waiting.append(pool.submit(function, item))
                if len(waiting) > workers:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()


def cache_dir() -> Path:
    """``$RETROBENCH_CACHE``, or ``retrobench`` in the user's cache folder."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(os.environ.get("RETROBENCH_CACHE") or Path(base) / "retrobench")


class Units:
    """Haystack units of each sample, on disk: with them a prompt is rebuilt without counting.

    One file per (task, tokenizer, length, seed, data). A folder that cannot be written is no error.
    """

    def __init__(self, name: str) -> None:
        self._path = cache_dir() / "units" / f"{name}.jsonl"

    @cached_property
    def _known(self) -> dict[str, int]:
        known: dict[str, int] = {}
        try:
            lines = self._path.read_text("utf-8").splitlines()
        except OSError:
            return known
        for line in lines:
            try:
                sample, units = json.loads(line)
                known[str(sample)] = int(units)
            except (ValueError, TypeError):
                continue  # a torn line of a killed run
        return known

    def get(self, sample: str) -> int | None:
        """Units of a sample, if known."""
        return self._known.get(sample)

    def put(self, sample: str, units: int) -> None:
        """Remember a sample's units, now and on disk."""
        self._known[sample] = units
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            with self._path.open("a", encoding="utf-8") as stream:
                stream.write(json.dumps([sample, units]) + "\n")
        except OSError:
            return
