"""RULER (arXiv 2404.06654): 13 synthetic tasks at any length, for the tokenizer at hand."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from retrobench.core.cell import digest
from retrobench.core.spec import option
from retrobench.core.task import Prompt, Sample, Task
from retrobench.tasks.haystack import Corpus, Haystack, corpus
from retrobench.tasks.ruler import answering, counting, needles, spec, tracing
from retrobench.tasks.ruler.draft import Draft, Maker, measure
from retrobench.tasks.ruler.fit import Pace, fit
from retrobench.tasks.scorers.ruler import score

BUILDER = 1  # raise when the samples change


@dataclass(frozen=True, kw_only=True)
class RulerConfig:
    """Options of ``task=ruler``."""

    tasks: tuple[str, ...] = option(spec.TASKS, "sub-tasks", choices=spec.TASKS)
    length: tuple[int, ...] = option(
        (4096,), "context lengths in tokens, answer included", low=256, high=4_194_304
    )
    samples: int = option(5, "samples per task and length (official: 500)", low=1)
    seed: int = option(42, "seed of the generator", low=0)
    stand_in: bool = option(
        True, "use labelled stand-ins where data files are missing; false: an error instead"
    )


class RulerTask(Task):
    """Samples with the official structure; a sample depends on (task, length, seed, index)."""

    name = "ruler"
    Config = RulerConfig
    config: RulerConfig

    @cached_property
    def _haystack(self) -> Haystack:
        return Haystack(self.data_root, self.config.stand_in)

    def _corpus(self, task: str) -> Corpus:
        return corpus(task, self.data_root, self.config.stand_in)

    def fingerprint(self, prompt: Prompt) -> str:
        """Builder version, tokenizer and every text that the chosen tasks draw on."""
        parts: dict[str, Any] = {"builder": BUILDER, "tokenizer": prompt.tokenizer_id}
        if any(spec.NIAH[t].haystack == "essay" for t in self.config.tasks if t in spec.NIAH):
            parts["essays"] = self._haystack.fingerprint
        for task in self.config.tasks:
            if task.startswith("qa"):
                parts[task] = self._corpus(task).fingerprint
        return digest(parts)

    def samples(self, prompt: Prompt) -> Iterator[Sample]:
        """Task by task, length by length."""
        for task in self.config.tasks:
            for length in self.config.length:
                for index in range(self.config.samples):
                    yield self._sample(prompt, task, length, index)

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

    def _sample(self, prompt: Prompt, task: str, length: int, index: int) -> Sample:
        rng = random.Random(f"{self.config.seed}/{task}/{length}/{index}")
        make, most = self._maker(prompt, task, length, index, rng)
        new_tokens = spec.NEW_TOKENS[task]
        what = f"{task}/{length}/{index}"
        draft = fit(make, measure(prompt), length - new_tokens, Pace(), what, most)
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
        )

    def _meta(self, draft: Draft) -> dict[str, Any]:
        name = draft.meta["haystack"]
        stand_in = name == self._haystack.name and self._haystack.stand_in
        meta = {**draft.meta, "stand_in": stand_in or "stand-in" in name}
        return {**meta, "preamble": draft.preamble} if draft.preamble else meta

    def _maker(
        self, prompt: Prompt, task: str, length: int, index: int, rng: random.Random
    ) -> tuple[Maker, int | None]:
        if task in spec.NIAH:
            return needles.maker(task, rng, self._haystack), None
        if task == "vt":
            return tracing.maker(rng, prompt), None
        if task == "cwe":
            return counting.cwe_maker(rng, length, prompt), None
        if task == "fwe":
            return counting.fwe_maker(rng, length, prompt), None
        return answering.maker(rng, self._corpus(task), index)
