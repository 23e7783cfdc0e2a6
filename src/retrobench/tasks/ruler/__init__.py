"""RULER (arXiv 2404.06654): 13 synthetic tasks at any length, for the tokenizer at hand."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import product
from typing import Any

from retrobench.core.cell import digest
from retrobench.core.spec import option
from retrobench.core.task import Prompt, Sample, Task
from retrobench.tasks.building import ahead
from retrobench.tasks.haystack import Corpus, Haystack, corpus, english_words_fingerprint
from retrobench.tasks.ruler import answering, counting, names, needles, spec, tracing
from retrobench.tasks.ruler.draft import Draft, Maker
from retrobench.tasks.ruler.fitter import Fitter, Group
from retrobench.tasks.sampling import SamplingConfig
from retrobench.tasks.scorers.ruler import score

BUILDER = 2  # raise when the samples change
# What a first probe is made of: characters of a short document, coded words of every rank.
_UNITS = {"qa_1": 400, "qa_2": 400, "fwe": 50}


@dataclass(frozen=True, kw_only=True)
class RulerConfig(SamplingConfig):
    """Options of ``task=ruler``."""

    tasks: tuple[str, ...] = option(spec.TASKS, "sub-tasks", choices=spec.TASKS)
    length: tuple[int, ...] = option(
        (4096,), "context lengths in tokens, answer included", low=256, high=4_194_304
    )
    samples: int = option(5, "samples per task and length (official: 500)", low=1)


class RulerTask(Task):
    """Samples with the official structure; a sample depends on (task, length, seed, index)."""

    name = "ruler"
    display_names, short_names = names.DISPLAY, names.SHORT
    num_tasks = len(spec.TASKS)
    Config = RulerConfig
    config: RulerConfig

    @cached_property
    def _haystack(self) -> Haystack:
        return Haystack(self.data_root, self.config.stand_in)

    def _corpus(self, task: str) -> Corpus:
        return corpus(task, self.data_root, self.config.stand_in)

    def fingerprint(self, prompt: Prompt) -> str:
        """Builder version, tokenizer and every text that the chosen tasks draw on."""
        sources = sorted({self._source(task) for task in self.config.tasks})
        return digest({"builder": BUILDER, "tokenizer": prompt.tokenizer_id, "sources": sources})

    def samples(self, prompt: Prompt) -> Iterator[Sample]:
        """Task by task, length by length."""
        for task in self.config.tasks:
            self._source(task)  # missing or broken data is everybody's error, not one sample's
        wanted = product(self.config.tasks, self.config.length, range(self.config.samples))
        fitter = Fitter(prompt)
        return ahead(lambda at: self._build(prompt, fitter, at), wanted)

    def score(self, sample: Sample, text: str) -> float:
        """string_match_part for QA, string_match_all for the rest."""
        return score(sample.task, text, sample.references)

    def notes(self) -> tuple[str, ...]:
        """Stand-ins in use."""
        notes = []
        essay = [t for t in self.config.tasks if t in spec.NIAH]
        if self._haystack.stand_in and any(spec.NIAH[t].haystack == "essay" for t in essay):
            notes.append(f"haystack: {self._haystack.name}, not the essays")
        asked = [t for t in self.config.tasks if t.startswith("qa")]
        if any(self._corpus(task).stand_in for task in asked):
            notes.append("qa: synthetic stand-in")
        return tuple(notes)

    def _build(self, prompt: Prompt, fitter: Fitter, at: tuple[str, int, int]) -> Sample:
        task, length, index = at
        what, new_tokens = f"{task}/{length}/{index}", spec.NEW_TOKENS[task]
        rng = random.Random(f"{self.config.seed}/{what}")
        try:
            make = self._maker(prompt, task, length, index, rng)
            draft = fitter.draft(what, self._group(prompt, task, length), make)
        except ValueError as error:
            draft = Draft(context="", question="", prefix="", references=(), error=str(error))
        return Sample(
            id=what,
            task=task,
            context=draft.context,
            question=draft.question,
            answer_prefix=draft.prefix,
            references=draft.references,
            max_new_tokens=new_tokens,
            length=length,
            meta=self._meta(draft),
            error=draft.error,
            follow_ups=draft.follow_ups,
        )

    def _group(self, prompt: Prompt, task: str, length: int) -> Group:
        parts = [BUILDER, prompt.tokenizer_id, task, length, self.config.seed, self._source(task)]

        def example() -> Maker:
            rng = random.Random(f"{self.config.seed}/{task}/{length}/example")
            return self._maker(prompt, task, length, 0, rng)

        return Group(
            key=digest(parts),
            limit_tokens=length - spec.NEW_TOKENS[task],
            example=example,
            unit=_UNITS.get(task, 1),
        )

    def _source(self, task: str) -> str:
        """Fingerprint of the texts that a task draws on."""
        if task in spec.NIAH and spec.NIAH[task].haystack == "essay":
            return self._haystack.fingerprint
        if task.startswith("qa"):
            return self._corpus(task).fingerprint
        return english_words_fingerprint(self.data_root) if task == "cwe" else ""

    def _meta(self, draft: Draft) -> dict[str, Any]:
        meta = {**draft.meta, "stand_in": "stand-in" in draft.meta.get("haystack", "")}
        return {**meta, "preamble": draft.preamble} if draft.preamble else meta

    def _maker(
        self, prompt: Prompt, task: str, length: int, index: int, rng: random.Random
    ) -> Maker:
        if task in spec.NIAH:
            essay = spec.NIAH[task].haystack == "essay"
            return needles.maker(task, rng, self._haystack if essay else None)
        if task == "vt":
            return tracing.maker(rng, prompt)
        if task == "cwe":
            return counting.cwe_maker(rng, length, prompt, self.data_root)
        if task == "fwe":
            return counting.fwe_maker(rng, length, prompt)
        return answering.maker(rng, self._corpus(task), index)
