"""The base of benchmarks that read records from local files.

Where the files are missing, labelled substitute records of the same schema take their place, so
that every benchmark runs offline from its first record to its table.
"""

import random
from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cache
from itertools import islice
from pathlib import Path
from typing import Any

from retrobench.core.cell import digest
from retrobench.core.spec import option
from retrobench.core.task import Prompt, Sample, Task
from retrobench.tasks import record_files, substitute
from retrobench.tasks.local_files import fetch_command
from retrobench.tasks.record_files import BadRecord

Record = Mapping[str, Any]
SUBSTITUTES = 4  # substitute records of each file if all are asked for
_POOL_SENTENCES = 20_000


@dataclass(frozen=True, kw_only=True)
class RecordsConfig:
    """Options that all of these benchmarks have."""

    samples: int = option(
        0, f"first records of each file; 0: all (of substitute records {SUBSTITUTES})", low=0
    )
    substitute: bool = option(
        True, "use labelled substitute records where files are missing; false: an error instead"
    )
    seed: int = option(42, "seed of the substitute records", low=0)


@dataclass(frozen=True, kw_only=True)
class SizedRecordsConfig(RecordsConfig):
    """And where the records have no length of their own to choose."""

    substitute_tokens: int = option(
        4096, "tokens of a substitute record, about", low=512, high=4_194_304
    )


class Prose:
    """Substitute prose in sentences, as much of it as fills a number of tokens."""

    def __init__(self, prompt: Prompt) -> None:
        words = substitute.essay_words(2000)
        self.tokens = prompt.count
        self._tokens_per_word = prompt.count(" ".join(words)) / len(words)

    def sentences(self, tokens: float, rng: random.Random) -> list[str]:
        """Sentences of about so many tokens, from a random place on."""
        pool = _sentences()
        index, left, found = rng.randrange(len(pool)), tokens / self._tokens_per_word, []
        while left > 0:
            text, words = pool[index % len(pool)]
            found.append(text)
            left -= words
            index += 1
        return found

    def filled(self, tokens: int, make: Callable[[], str], between: str = "\n") -> list[str]:
        """Pieces of text up to a number of tokens, which a few of them estimate; at least 8."""
        pieces = [make() for _ in range(8)]
        each = self.tokens(between.join(pieces)) / len(pieces)
        return pieces + [make() for _ in range(max(0, int(tokens / each) - len(pieces)))]

    def text(self, tokens: float, rng: random.Random) -> str:
        """Sentences of about so many tokens as one line."""
        return " ".join(self.sentences(tokens, rng))


@cache
def _sentences() -> tuple[tuple[str, int], ...]:
    """Sentences with their number of words."""
    pool = islice(substitute.essay_sentences(), _POOL_SENTENCES)
    return tuple((" ".join(words), len(words)) for words in pool)


class RecordsTask(Task):
    """A subclass names its files and makes a sample of a record, or a substitute record."""

    builder = 1
    """Raise it when the same file gives other prompts."""
    config: RecordsConfig

    @abstractmethod
    def parts(self) -> tuple[str, ...]:
        """Names of the files, without suffix, below the benchmark's folder."""

    @abstractmethod
    def sample(self, part: str, index: int, raw: Record, prompt: Prompt) -> Sample | None:
        """The sample of a record; None if the options leave it out. ValueError if it is none."""

    @abstractmethod
    def substitutes(self, part: str, rng: random.Random, prose: Prose) -> Record:
        """A substitute record; it depends on the random draws alone."""

    def task_of(self, part: str) -> str:
        """The sub-task that a file belongs to."""
        return part

    def fingerprint(self, prompt: Prompt) -> str:
        """Hash of builder version, tokenizer and the files' content."""
        files = {part: self._hashes(part) for part in self.parts()}
        return digest({"builder": self.builder, "tokenizer": prompt.tokenizer_id, "files": files})

    def samples(self, prompt: Prompt) -> Iterator[Sample]:
        """File by file, in their order. A bad record becomes a sample with an ``error``."""
        for part in self.parts():
            yield from islice(self._of_part(part, prompt), self.config.samples or None)

    def notes(self) -> tuple[str, ...]:
        """Says that records are substitutes, if any are."""
        made = any(not self._files(part) for part in self.parts())
        return (f"substitute records, not those of {self.name}",) if made else ()

    def _of_part(self, part: str, prompt: Prompt) -> Iterator[Sample]:
        files = self._files(part)
        found = self._read(files) if files else self._made(part, prompt)
        for index, (where, raw) in enumerate(found):
            try:
                if isinstance(raw, BadRecord):
                    raise ValueError(raw.message)
                sample = self.sample(part, index, raw, prompt)
            except ValueError as error:
                message = str(error) if isinstance(raw, BadRecord) else f"{where}: {error}"
                bad = record_files.error_sample(part, BadRecord(index + 1, message))
                yield replace(bad, task=self.task_of(part))
                continue
            if sample is not None:
                yield replace(sample, meta={**sample.meta, "stand_in": not files})

    def _read(self, files: tuple[Path, ...]) -> Iterator[tuple[str, Record | BadRecord]]:
        for path in files:
            for number, raw in record_files.read(path, self.name):
                yield record_files.place(path, number), raw

    def _made(self, part: str, prompt: Prompt) -> Iterator[tuple[str, Record]]:
        prose = Prose(prompt)
        for index in range(self.config.samples or SUBSTITUTES):
            rng = random.Random(f"{self.config.seed}/{self.name}/{part}/{index}")
            yield f"substitute record {index}", self.substitutes(part, rng, prose)

    def _files(self, part: str) -> tuple[Path, ...]:
        """The files of a part; () where substitutes take their place."""
        folder = Path(self.data_root or "data") / self.name
        found = record_files.find(folder, part)
        if not found and not self.config.substitute:
            raise ValueError(
                f"{part}.jsonl (.json, .parquet) not found in {folder}: fetch it with "
                f"{fetch_command(self.name)} or allow task.substitute=true"
            )
        return found

    def _hashes(self, part: str) -> list[str] | str:
        return [record_files.content_hash(path) for path in self._files(part)] or "substitute"
