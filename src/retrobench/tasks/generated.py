"""The base of benchmarks that make their samples for the tokenizer at hand."""

import os
from abc import abstractmethod
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from typing import Any, TypeVar

from retrobench.core.cell import digest
from retrobench.core.spec import option
from retrobench.core.task import Prompt, Sample, Task
from retrobench.tasks.fitting.fitter import LengthFitter
from retrobench.tasks.fitting.parts import PromptParts, SampleGroup
from retrobench.tasks.haystack import Haystack

Item = TypeVar("Item")
Result = TypeVar("Result")


@dataclass(frozen=True, kw_only=True)
class SamplingConfig:
    """Options that all of these benchmarks have."""

    length: tuple[int, ...] = option(
        (4096,), "context lengths in tokens, answer included", low=512, high=4_194_304
    )
    samples: int = option(1, "samples per length and task, or depth", low=1)
    seed: int = option(42, "seed of the generator", low=0)
    substitute: bool = option(
        True,
        "use labelled substitute data where files are missing; false: an error instead",
        was="stand_in",
    )


class GeneratedTask(Task):
    """Builds samples in threads and fills each prompt up to its length.

    A subclass says which groups of samples there are, and how one prompt is made. A sample depends
    on its group, the seed and its index alone.
    """

    config: SamplingConfig
    builder = 1
    """Raised when the samples change."""
    advice = ""
    """What the user may do, besides a greater length, if a sample does not fit."""

    @cached_property
    def _haystack(self) -> Haystack:
        return Haystack(self.data_root, self.config.substitute)

    def fingerprint(self, prompt: Prompt) -> str:
        """Hash of builder version, tokenizer and essays."""
        return digest([self.builder, prompt.tokenizer_id, self._haystack.fingerprint])

    @abstractmethod
    def groups(self, prompt: Prompt) -> Iterator[SampleGroup]:
        """The groups of samples in their fixed order."""

    def notes(self) -> tuple[str, ...]:
        """Names the haystack if it is not the benchmark's own essays."""
        return self._haystack.notes

    def samples(self, prompt: Prompt) -> Iterator[Sample]:
        """Group by group. A sample that cannot be made has an ``error``; the others are made."""
        fitter = LengthFitter(prompt)
        indices = range(self.config.samples)
        requests = ((group, index) for group in self.groups(prompt) for index in indices)
        return map_ahead(lambda request: self._sample(fitter, *request), requests)

    def _sample(self, fitter: LengthFitter, group: SampleGroup, index: int) -> Sample:
        sample_id = f"{group.name}/{index}"
        try:
            factory = group.factory(f"{self.config.seed}/{sample_id}{group.salt}", index)
            parts = fitter.fit(sample_id, group, factory)
        except ValueError as error:
            parts = PromptParts(error=f"{error}{self.advice}")
        return Sample(
            id=sample_id,
            task=group.task,
            context=parts.context,
            question=parts.question,
            answer_prefix=parts.answer_prefix,
            references=parts.references,
            max_new_tokens=group.max_new_tokens,
            length=group.length,
            meta=self._meta(parts),
            error=parts.error,
            follow_ups=parts.follow_ups,
        )

    def _meta(self, parts: PromptParts) -> dict[str, Any]:
        meta = {**parts.meta, "stand_in": self._has_substitute(parts)}
        return {**meta, "preamble": parts.preamble} if parts.preamble else meta

    def _has_substitute(self, parts: PromptParts) -> bool:
        """Whether a prompt holds substitute data."""
        return self._haystack.is_substitute


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
