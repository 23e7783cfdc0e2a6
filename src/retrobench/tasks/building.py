"""Builds many samples in parallel, and remembers the size of each one."""

import json
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from functools import cached_property
from typing import TypeVar

from retrobench.core.paths import cache_root

Item = TypeVar("Item")
Result = TypeVar("Result")


def map_ahead(function: Callable[[Item], Result], items: Iterable[Item]) -> Iterator[Result]:
    """``map`` in threads, in order, a few items ahead of the consumer.

    Tokenizers release the interpreter lock, so counting runs on all cores while the model runs.
    """
    workers = min(8, os.cpu_count() or 1)
    pending: deque[Future[Result]] = deque()
    with ThreadPoolExecutor(workers, thread_name_prefix="samples") as pool:
        try:
            for item in items:
                pending.append(pool.submit(function, item))
                if len(pending) > workers:
                    yield pending.popleft().result()
            while pending:
                yield pending.popleft().result()
        finally:
            for future in pending:
                future.cancel()


class UnitCache:
    """Haystack units of each sample, on disk. With them a prompt is rebuilt without a search.

    There is one file for each group of samples. A folder that cannot be written is no error.
    """

    def __init__(self, name: str) -> None:
        self.path = cache_root() / "units" / f"{name}.jsonl"

    @cached_property
    def _known(self) -> dict[str, tuple[int, int | None]]:
        known: dict[str, tuple[int, int | None]] = {}
        try:
            lines = self.path.read_text("utf-8").splitlines()
        except (OSError, ValueError):
            return known
        for line in lines:
            try:
                sample, units, *tokens = json.loads(line)
                known[str(sample)] = int(units), int(tokens[0]) if tokens else None
            except (ValueError, TypeError, OverflowError, RecursionError):
                continue  # a torn line of a killed run
        return known

    def get(self, sample: str) -> tuple[int, int | None] | None:
        """Units of a sample and the tokens of its prompt (None in older files), if known."""
        return self._known.get(sample)

    def put(self, sample: str, units: int, tokens: int) -> None:
        """Remember a sample's units, now and on disk."""
        self._known[sample] = units, tokens
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.path.open("a", encoding="utf-8") as stream:
                stream.write(json.dumps([sample, units, tokens]) + "\n")
        except OSError:
            return
