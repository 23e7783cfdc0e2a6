"""Needle in a haystack: a grid of depths and lengths."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import product

from retrobench.core.cell import digest
from retrobench.core.spec import option
from retrobench.core.task import Prompt, Sample, Task
from retrobench.tasks.building import ahead
from retrobench.tasks.haystack import Haystack
from retrobench.tasks.ruler import needles, spec
from retrobench.tasks.ruler.draft import Draft, Maker
from retrobench.tasks.ruler.fitter import Fitter, Group
from retrobench.tasks.ruler.words import draw
from retrobench.tasks.sampling import SamplingConfig
from retrobench.tasks.scorers.ruler import score

BUILDER = 2

# gkamradt/LLMTest_NeedleInAHaystack; scored by its key phrase, without a judge model.
_SANDWICH = (
    "The best thing to do in San Francisco is eat a sandwich and sit in Dolores Park on a sunny "
    "day."
)
_SANDWICH_ANSWER = "eat a sandwich and sit in Dolores Park"
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


@dataclass(frozen=True, slots=True)
class _Texts:
    """One draw: what is hidden and asked, and the RULER task of the same skill."""

    needles: tuple[str, ...]
    question: str
    answers: tuple[str, ...]
    like: str
    head: str = ""
    prefix: str = ""


@dataclass(frozen=True, kw_only=True)
class NiahConfig(SamplingConfig):
    """Options of ``task=niah``."""

    depths: int = option(5, "depths between 0 and 100 percent, evenly spaced", low=1, high=101)
    needle: str = option(
        "ruler",
        "ruler: RULER's niah_single_2 texts; sandwich: the original; city: MInference's numbers",
        choices=("ruler", "sandwich", "city"),
    )
    num_needles: int = option(
        1, "needle=ruler: values of one key; the first at the depth, the rest evenly below", low=1
    )

    def __post_init__(self) -> None:
        if self.num_needles > 1 and self.needle != "ruler":
            raise ValueError(f"num_needles={self.num_needles} needs needle=ruler")


class NiahTask(Task):
    """Needles at chosen depths among essay sentences; substring score."""

    name = "niah"
    Config = NiahConfig
    config: NiahConfig

    @cached_property
    def _haystack(self) -> Haystack:
        return Haystack(self.data_root, self.config.stand_in)

    @property
    def _kind(self) -> tuple[str, int]:
        return self.config.needle, self.config.num_needles

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
        wanted = product(self.config.length, depths, range(self.config.samples))
        fitter = Fitter(prompt)
        return ahead(lambda at: self._build(prompt, fitter, at), wanted)

    def score(self, sample: Sample, text: str) -> float:
        """Share of references in the answer (case-insensitive substrings)."""
        return score("niah", text, sample.references)

    def _build(self, prompt: Prompt, fitter: Fitter, at: tuple[int, float, int]) -> Sample:
        length, depth, index = at
        what = f"niah/{length}/{depth:g}/{index}"
        new_tokens = 128 if self.config.needle == "ruler" else 64
        group = Group(
            key=digest([self.fingerprint(prompt), *self._kind, self.config.seed, length]),
            limit_tokens=length - new_tokens,
            example=lambda: self._maker(random.Random(f"{self.config.seed}/{length}"), 50.0),
        )
        rng = random.Random(f"{self.config.seed}/{what}/{self.config.needle}")
        draft = fitter.draft(what, group, self._maker(rng, depth))
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
        texts, count = self._texts(rng), self.config.num_needles
        depths = [depth + i * (100 - depth) / count for i in range(count)]

        def make(units: int) -> Draft:
            text = needles.insert(self._haystack.words(units), texts.needles, depths)
            return Draft(
                context=texts.head + text,
                question=texts.question,
                prefix=texts.prefix,
                references=texts.answers,
                meta={"haystack": self._haystack.name, "like": texts.like},
            )

        return make

    def _texts(self, rng: random.Random) -> _Texts:
        if self.config.needle == "sandwich":
            return _Texts((_SANDWICH,), _SANDWICH_QUESTION, (_SANDWICH_ANSWER,), "niah_sandwich")
        count = self.config.num_needles
        numbers = tuple(draw("numbers", rng) for _ in range(count))
        if self.config.needle == "city":
            city = rng.choice(_CITIES)
            sentence = f"The special magic {city} number is: {numbers[0]}."
            question = _CITY_QUESTION.format(city=city)
            return _Texts((sentence,), question, numbers, "niah_city", head=_CITY_HEAD)
        key = draw("words", rng)
        sentences = tuple(
            spec.NEEDLE.format(kind="numbers", key=key, value=number) for number in numbers
        )
        head, question, prefix = needles.texts("numbers", [key], count)
        like = "niah_single_2" if count == 1 else "niah_multivalue"
        return _Texts(sentences, question, numbers, like, head=head, prefix=prefix)
