"""Long answers whose every step needs early context: what index updates during decoding are for.

A retrieval method that seals its index after the prefill is tested by benchmarks with short answers
only as far as the prompt goes. Here the answer is long (by default over 1024 tokens, a segment of
RetroInfer's incremental update) and each of its items depends on text far before it and on what was
generated last.
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate, product

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

BUILDER = 1
_DEPTHS = {"recite": (5, 30), "walk": (2, 60)}  # percent: where the facts stand

_WALK_HEAD = (
    "The following text mentions stations. For each it says which station comes next and what toll "
    "is paid there. Memorize them.\n"
)
_WALK_FACT = "From {here} the next station is {there}, where the toll is {toll}."
_WALK_QUESTION = (
    "\nStart at {start} with a total of 0 and travel {count} stations. At each station add its "
    "toll to the total. Write one line for each station, `station: total`, and nothing else."
)
_ITEM = {"recite": re.compile(r"\d+"), "walk": re.compile(r"([\w' -]+-[\w' -]+): *(\d+)")}


@dataclass(frozen=True, kw_only=True)
class LongGenerationConfig(SamplingConfig):
    """Options of ``task=long_generation``."""

    tasks: tuple[str, ...] = option(
        ("recite",),
        "recite: repeat a long list hidden in the text; walk: follow hidden links and add up",
        choices=("recite", "walk"),
    )
    length: tuple[int, ...] = option(
        (8192,), "context lengths in tokens, answer included", low=512, high=4_194_304
    )
    items: int = option(400, "items of the answer; about 3 tokens each (walk: 9)", low=2)


@dataclass(frozen=True, slots=True)
class _Puzzle:
    """Facts to hide, in reading order, and the answer's items in their order."""

    facts: tuple[str, ...]
    items: tuple[str, ...]
    head: str
    question: str
    prefix: str = ""

    @property
    def answer(self) -> str:
        """The whole answer as text."""
        return "\n".join(self.items) if self.head == _WALK_HEAD else " ".join(self.items)


class LongGenerationTask(Task):
    """The score is the share of items that are right before the first wrong one."""

    name = "long_generation"
    Config = LongGenerationConfig
    config: LongGenerationConfig

    @cached_property
    def _haystack(self) -> Haystack:
        return Haystack(self.data_root, self.config.stand_in)

    def fingerprint(self, prompt: Prompt) -> str:
        """Builder version, tokenizer and essays."""
        return digest([BUILDER, prompt.tokenizer_id, self._haystack.fingerprint])

    def notes(self) -> tuple[str, ...]:
        """Stand-ins in use."""
        if not self._haystack.stand_in:
            return ()
        return (f"haystack: {self._haystack.name}, not the essays",)

    def samples(self, prompt: Prompt) -> Iterator[Sample]:
        """Task by task, length by length."""
        wanted = product(self.config.tasks, self.config.length, range(self.config.samples))
        fitter = Fitter(prompt)
        return ahead(lambda at: self._build(prompt, fitter, at), wanted)

    def score(self, sample: Sample, text: str) -> float:
        """Items right in a row from the first, as a share of all."""
        found = [
            match.group() if sample.task == "recite" else f"{match[1].strip()}: {match[2]}"
            for match in _ITEM[sample.task].finditer(text)
        ]
        right = 0
        for ours, expected in zip(found, sample.references, strict=False):
            if ours != expected:
                break
            right += 1
        return right / len(sample.references)

    def _build(self, prompt: Prompt, fitter: Fitter, at: tuple[str, int, int]) -> Sample:
        task, length, index = at
        what = f"{task}/{length}/{index}"
        puzzle = self._puzzle(task, random.Random(f"{self.config.seed}/{what}"))
        example = self._puzzle(task, random.Random(f"{self.config.seed}/{task}"))
        new_tokens = 64 + int(1.1 * prompt.count(example.answer))
        options = [task, length, self.config.items, self.config.seed]
        group = Group(
            key=digest([self.fingerprint(prompt), *options]),
            limit_tokens=length - new_tokens,
            example=lambda: self._maker(task, example),
        )
        error = ""
        try:
            draft = fitter.draft(what, group, self._maker(task, puzzle))
        except ValueError as problem:
            draft = Draft(context="", question="", prefix="", references=())
            error = f"{problem}, or lower task.items"
        return Sample(
            id=what,
            task=task,
            context=draft.context,
            question=draft.question,
            answer_prefix=draft.prefix,
            references=draft.references,
            max_new_tokens=new_tokens,
            length=length,
            meta={**draft.meta, "stand_in": self._haystack.stand_in},
            error=error,
        )

    def _maker(self, task: str, puzzle: _Puzzle) -> Maker:
        low, high = _DEPTHS[task]
        count = len(puzzle.facts)
        depths = [low + (high - low) * i / count for i in range(count)]
        # Copying a list is what one lookup after another does: the skill of a single needle.
        like = {"recite": "niah_single_2", "walk": "walk"}[task]

        def make(units: int) -> Draft:
            text = needles.insert(self._haystack.words(units), puzzle.facts, depths)
            return Draft(
                context=puzzle.head + text,
                question=puzzle.question,
                prefix=puzzle.prefix,
                references=puzzle.items,
                meta={"haystack": self._haystack.name, "like": like},
            )

        return make

    def _puzzle(self, task: str, rng: random.Random) -> _Puzzle:
        return _list(rng, self.config.items) if task == "recite" else _walk(rng, self.config.items)


def _list(rng: random.Random, count: int) -> _Puzzle:
    """A RULER needle whose value is a list of numbers, all different."""
    key = draw("words", rng)
    numbers = tuple(map(str, rng.sample(range(1_000_000, 10_000_000), count)))
    fact = spec.NEEDLE.format(kind="numbers", key=key, value=" ".join(numbers))
    head, question, prefix = needles.texts("numbers", [key], 1)
    return _Puzzle((fact,), numbers, head, question, prefix)


def _walk(rng: random.Random, count: int) -> _Puzzle:
    """Stations that link to each other, mentioned in random order."""
    found: dict[str, None] = {}  # a set that keeps its order
    while len(found) <= count:
        found[draw("words", rng)] = None
    names = list(found)
    tolls = [rng.randint(1, 99) for _ in range(count)]
    links = zip(names, names[1:], tolls, strict=False)
    facts = [_WALK_FACT.format(here=a, there=b, toll=toll) for a, b, toll in links]
    rng.shuffle(facts)
    items = tuple(f"{b}: {total}" for b, total in zip(names[1:], accumulate(tolls), strict=True))
    question = _WALK_QUESTION.format(start=names[0], count=count)
    return _Puzzle(tuple(facts), items, _WALK_HEAD, question)
