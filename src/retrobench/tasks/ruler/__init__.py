"""RULER (arXiv 2404.06654): 13 synthetic tasks at any length, for the tokenizer at hand."""

import random
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from itertools import product

from retrobench.core.cell import digest
from retrobench.core.spec import option
from retrobench.core.task import Prompt, Sample
from retrobench.tasks.corpus import Corpus, load_corpus
from retrobench.tasks.fitting.parts import PromptFactory, PromptParts, SampleGroup
from retrobench.tasks.generated import GeneratedTask, SamplingConfig
from retrobench.tasks.ruler import answering, counting, needles, spec, tracing
from retrobench.tasks.ruler.words import english_words_fingerprint
from retrobench.tasks.scorers.ruler import score

BUILDER = 2  # raise when the samples change
# Units that make about one line: characters of a short document, coded words of every rank.
_UNITS = {"qa_1": 400, "qa_2": 400, "fwe": 50}


@dataclass(frozen=True, kw_only=True)
class RulerConfig(SamplingConfig):
    """Options of ``task=ruler``."""

    tasks: tuple[str, ...] = option(spec.TASKS, "sub-tasks", choices=spec.TASKS)
    length: tuple[int, ...] = option(
        (4096,), "context lengths in tokens, answer included", low=256, high=4_194_304
    )
    samples: int = option(5, "samples per task and length (official: 500)", low=1)


class RulerTask(GeneratedTask):
    """Samples with the official structure; a sample depends on (task, length, seed, index)."""

    name = "ruler"
    display_names, short_names = spec.DISPLAY, spec.SHORT
    num_tasks = len(spec.TASKS)
    Config = RulerConfig
    config: RulerConfig

    def fingerprint(self, prompt: Prompt) -> str:
        """Hash of builder version, tokenizer and every text that the chosen tasks draw on."""
        sources = sorted({self._source(task) for task in self.config.tasks})
        return digest({"builder": BUILDER, "tokenizer": prompt.tokenizer_id, "sources": sources})

    def groups(self, prompt: Prompt) -> Iterator[SampleGroup]:
        """Task by task, length by length."""
        # Read at once: missing or broken data is everybody's error, not one sample's.
        sources = {task: self._source(task) for task in self.config.tasks}
        for task, length in product(self.config.tasks, self.config.length):
            name, seed = f"{task}/{length}", self.config.seed
            factory = partial(self._factory, prompt, task, length)
            yield SampleGroup(
                name=name,
                task=task,
                length=length,
                max_new_tokens=spec.NEW_TOKENS[task],
                key=digest([BUILDER, prompt.tokenizer_id, task, length, seed, sources[task]]),
                factory=factory,
                example=partial(factory, f"{seed}/{name}/example", 0),
                unit=_UNITS.get(task, 1),
            )

    def score(self, sample: Sample, text: str) -> float:
        """string_match_part for QA, string_match_all for the rest."""
        return score(sample.task, text, sample.references)

    def notes(self) -> tuple[str, ...]:
        """Names the substitute data in use."""
        tasks = self.config.tasks
        notes = super().notes() if any(map(_has_essays, tasks)) else ()
        if any(self._corpus(task).is_substitute for task in tasks if task.startswith("qa")):
            notes = (*notes, "qa: synthetic substitute data")
        return notes

    def _corpus(self, task: str) -> Corpus:
        return load_corpus(task, self.data_root, self.config.substitute)

    def _source(self, task: str) -> str:
        """Fingerprint of the texts that a task draws on."""
        if _has_essays(task):
            return self._haystack.fingerprint
        if task.startswith("qa"):
            return self._corpus(task).fingerprint
        return english_words_fingerprint(self.data_root) if task == "cwe" else ""

    def _has_substitute(self, parts: PromptParts) -> bool:
        return "substitute" in parts.meta.get("haystack", "")

    def _factory(
        self, prompt: Prompt, task: str, length: int, seed: str, index: int
    ) -> PromptFactory:
        rng = random.Random(seed)
        if task in spec.NIAH:
            return needles.factory(task, rng, self._haystack if _has_essays(task) else None)
        if task == "vt":
            return tracing.factory(rng, prompt)
        if task == "cwe":
            return counting.cwe_factory(rng, length, prompt, self.data_root)
        if task == "fwe":
            return counting.fwe_factory(rng, length, prompt)
        return answering.factory(rng, self._corpus(task), index)


def _has_essays(task: str) -> bool:
    return task in spec.NIAH and spec.NIAH[task].haystack == "essay"
