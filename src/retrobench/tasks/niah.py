"""Needle in a haystack: a grid of depths and lengths."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from retrobench.core.cell import digest
from retrobench.core.spec import option
from retrobench.core.task import Prompt, Sample, Task
from retrobench.tasks.haystack import Haystack
from retrobench.tasks.ruler import needles, spec
from retrobench.tasks.ruler.draft import Draft, Maker, measure
from retrobench.tasks.ruler.fit import Pace, fit
from retrobench.tasks.ruler.words import draw
from retrobench.tasks.scorers.ruler import score

BUILDER = 1

# gkamradt/LLMTest_NeedleInAHaystack; scored by its key phrase, without a judge model.
_SANDWICH = (
    "The best thing to do in San Francisco is eat a sandwich and sit in Dolores Park on a sunny "
    "day."
)
_SANDWICH_QUESTION = (
    "\n\nWhat is the best thing to do in San Francisco? Don't give information outside the "
    "document or repeat your findings"
)
# MInference's format, used by RetroInfer's throughput prompts.
_CITY_HEAD = (
    "Write a high-quality answer for the given question using only the provided search results "
    "(some of which might be irrelevant).\n"
)
_CITY_QUESTION = (
    "\n\nQuestion: What is the special magic {city} number? Don't give information outside the "
    "document or repeat your findings. Keep your response short and direct. Answer: "
)
_CITIES = ("Chicago", "Yangon", "Antananarivo", "Colombo", "Almaty", "Sydney", "Mexico City")


@dataclass(frozen=True, kw_only=True)
class NiahConfig:
    """Options of ``task=niah``."""

    length: tuple[int, ...] = option(
        (4096,), "context lengths in tokens, answer included", low=512, high=4_194_304
    )
    depths: int = option(5, "depths between 0 and 100 percent, evenly spaced", low=1, high=101)
    samples: int = option(1, "samples per length and depth", low=1)
    needle: str = option(
        "ruler",
        "ruler: RULER's niah_single_2 texts; sandwich: the original; city: MInference's numbers",
        choices=("ruler", "sandwich", "city"),
    )
    seed: int = option(42, "seed of the generator", low=0)
    stand_in: bool = option(
        True, "use labelled stand-ins where data files are missing; false: an error instead"
    )


class NiahTask(Task):
    """One needle at a chosen depth among essay sentences; substring score."""

    name = "niah"
    Config = NiahConfig
    config: NiahConfig

    @cached_property
    def _haystack(self) -> Haystack:
        return Haystack(self.data_root, self.config.stand_in)

    def fingerprint(self, prompt: Prompt) -> str:
        """Builder version, tokenizer and essays."""
        essays = self._haystack.fingerprint
        return digest({"builder": BUILDER, "tokenizer": prompt.tokenizer_id, "essays": essays})

    def notes(self) -> tuple[str, ...]:
        """Stand-ins in use."""
        if not self._haystack.stand_in:
            return ()
        return (f"haystack: {self._haystack.name}, not the essays",)

    def samples(self, prompt: Prompt) -> Iterator[Sample]:
        """Length by length, depth by depth."""
        count = self.config.depths
        depths = [50.0] if count == 1 else [round(100 * i / (count - 1), 1) for i in range(count)]
        for length in self.config.length:
            for depth in depths:
                for index in range(self.config.samples):
                    yield self._sample(prompt, length, depth, index)

    def score(self, sample: Sample, text: str) -> float:
        """Share of references in the answer (case-insensitive substrings)."""
        return score("niah", text, sample.references)

    def _sample(self, prompt: Prompt, length: int, depth: float, index: int) -> Sample:
        what = f"niah/{length}/{depth:g}/{index}"
        rng = random.Random(f"{self.config.seed}/{what}/{self.config.needle}")
        new_tokens = 128 if self.config.needle == "ruler" else 64
        make = self._maker(rng, depth)
        draft = fit(make, measure(prompt), length - new_tokens, Pace(), what)
        return Sample(
            id=what,
            task="niah",
            context=draft.context,
            question=draft.question,
            answer_prefix=draft.prefix,
            references=draft.references,
            max_new_tokens=new_tokens,
            length=length,
            meta={**draft.meta, "depth": depth, "stand_in": self._haystack.stand_in},
        )

    def _maker(self, rng: random.Random, depth: float) -> Maker:
        head, needle, question, prefix, answer, like = self._texts(rng)

        def make(units: int) -> Draft:
            text = needles.insert(self._haystack.words(units), [needle], [depth])
            return Draft(
                context=head + text,
                question=question,
                prefix=prefix,
                references=(answer,),
                meta={"haystack": self._haystack.name, "like": like},
            )

        return make

    def _texts(self, rng: random.Random) -> tuple[Any, ...]:
        """(head, needle, question, answer prefix, reference, RULER task of the same skill)."""
        if self.config.needle == "sandwich":
            answer = "eat a sandwich and sit in Dolores Park"
            return "", _SANDWICH, _SANDWICH_QUESTION, "", answer, "niah_sandwich"
        number = draw("numbers", rng)
        if self.config.needle == "city":
            city = rng.choice(_CITIES)
            needle = f"The special magic {city} number is: {number}."
            question = _CITY_QUESTION.format(city=city)
            return _CITY_HEAD, needle, question, "", number, "niah_city"
        key = draw("words", rng)
        needle = spec.NEEDLE.format(kind="numbers", key=key, value=number)
        return *_reorder(needles.texts("numbers", [key], 1), needle), number, "niah_single_2"


def _reorder(texts: tuple[str, str, str], needle: str) -> tuple[str, str, str, str]:
    head, question, prefix = texts
    return head, needle, question, prefix
