"""Long answers whose every step needs early context. They test index updates during decoding.

Benchmarks with short answers test an index only as it was built from the prompt. Here the answer is
long: by default over 1024 tokens, which is a segment of RetroInfer's incremental update. Each item
of the answer depends on text far before it and on the item generated last.
"""

import random
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from itertools import accumulate

from retrobench.core.cell import digest
from retrobench.core.spec import option
from retrobench.core.task import Prompt, Sample
from retrobench.tasks.fitting.parts import PromptFactory, SampleGroup
from retrobench.tasks.generated import GeneratedTask, SamplingConfig
from retrobench.tasks.ruler import needles
from retrobench.tasks.ruler.needles import HiddenTexts
from retrobench.tasks.ruler.words import draw

_WALK_HEAD = (
    "The following text mentions stations. For each it says which station comes next and what toll "
    "is paid there. Memorize them.\n"
)
_WALK_FACT = "From {here} the next station is {there}, where the toll is {toll}."
_WALK_QUESTION = (
    "\nStart at {start} with a total of 0 and travel {count} stations. At each station add its "
    "toll to the total. Write one line for each station, `station: total`, and nothing else."
)
_WEAVE_RULE = (
    " Write one line for each number of the list, in its order: the number, a colon, and the "
    "number that you wrote {lag} lines above (0 in the first {lag} lines). Write nothing else."
)


@dataclass(frozen=True, kw_only=True)
class LongGenerationConfig(SamplingConfig):
    """Options of ``task=long_generation``."""

    tasks: tuple[str, ...] = option(
        ("recite",),
        "recite: repeat a long list hidden in the text; walk: follow hidden links and add up; "
        "weave: repeat a list, and beside each number the one some lines above",
        choices=("recite", "walk", "weave"),
    )
    length: tuple[int, ...] = option(
        (8192,), "context lengths in tokens, answer included", low=512, high=4_194_304
    )
    items: int = option(
        400, "items of the answer; about 3 tokens each (walk: 9)", low=2, high=1_000_000
    )
    answer_tokens: int = option(
        0,
        "tokens of the answer, about, in place of items (2048 to 16384 fill several segments of an "
        "index); 0: items",
        low=0,
        high=1_000_000,
        added=True,
    )
    lag: int = option(
        64, "lines between a number and its repetition (weave)", low=1, high=100_000, added=True
    )


class LongGenerationTask(GeneratedTask):
    """The score is the share of items that are right before the first wrong one."""

    name = "long_generation"
    Config = LongGenerationConfig
    config: LongGenerationConfig
    advice = ", or lower task.items"

    def groups(self, prompt: Prompt) -> Iterator[SampleGroup]:
        """Task by task, length by length."""
        seed = self.config.seed
        for task in self.config.tasks:
            kind, items = _KINDS[task], self._items(task, prompt)
            example = self._draw(task, f"{seed}/{task}", items)
            answer_tokens = prompt.count(kind.separator.join(example.answers))
            for length in self.config.length:
                options = [task, length, items, seed, *([self.config.lag] * (task == "weave"))]
                yield SampleGroup(
                    name=f"{task}/{length}",
                    task=task,
                    length=length,
                    max_new_tokens=64 + int(1.1 * answer_tokens),
                    key=digest([self.fingerprint(prompt), *options]),
                    factory=partial(self._factory, task, items),
                    example=partial(self._factory, task, items, f"{seed}/{task}", 0),
                )

    def score(self, sample: Sample, text: str) -> float:
        """Items right in a row from the first, as a share of all."""
        right = 0
        matches = _KINDS[sample.task].item.finditer(text)
        for match, expected in zip(matches, sample.references, strict=False):
            if ": ".join(part.strip() for part in match.groups()) != expected:
                break
            right += 1
        return right / len(sample.references)

    def _items(self, task: str, prompt: Prompt) -> int:
        """Items of the answer: as asked, or as many as fill ``answer_tokens``."""
        wanted, between = self.config.answer_tokens, _KINDS[task].separator
        if not wanted:
            return self.config.items
        items = 64
        for _ in range(3):  # first lines of weave are shorter than others
            answers = self._draw(task, f"{self.config.seed}/{task}", items).answers
            items = max(2, round(items * wanted / prompt.count(between.join(answers))))
        return items

    def _draw(self, task: str, seed: str, items: int) -> HiddenTexts:
        hidden = _KINDS[task].draw(random.Random(seed), items)
        return _woven(hidden, self.config.lag) if task == "weave" else hidden

    def _factory(self, task: str, items: int, seed: str, index: int) -> PromptFactory:
        kind = _KINDS[task]
        hidden = self._draw(task, seed, items)
        low, high = kind.depths
        count = len(hidden.needles)
        depths = [low + (high - low) * i / count for i in range(count)]
        return needles.essay_factory(self._haystack, hidden, depths)


def _draw_list(rng: random.Random, count: int) -> HiddenTexts:
    """A RULER needle whose value is a list of numbers, all different.

    Copying a list is what one lookup after another does: the skill of a single needle.
    """
    key = draw("words", rng)
    numbers = tuple(map(str, rng.sample(range(1_000_000, 10_000_000), count)))
    head, question, answer_prefix = needles.wording("numbers", [key], 1)
    return HiddenTexts(
        needles=(needles.sentence("numbers", key, " ".join(numbers)),),
        head=head,
        question=question,
        answer_prefix=answer_prefix,
        answers=numbers,
    )


def _woven(hidden: HiddenTexts, lag: int) -> HiddenTexts:
    """The same list; each line of the answer also needs one of its own lines far above."""
    above = ["0"] * lag + list(hidden.answers)
    lines = zip(hidden.answers, above, strict=False)
    return replace(
        hidden,
        question=f"{hidden.question}{_WEAVE_RULE.format(lag=lag)}",
        answer_prefix="",
        answers=tuple(f"{number}: {earlier}" for number, earlier in lines),
    )


def _draw_walk(rng: random.Random, count: int) -> HiddenTexts:
    """Stations that link to each other, mentioned in random order."""
    found: dict[str, None] = {}  # a set that keeps its order
    while len(found) <= count:
        found[draw("words", rng)] = None
    names = list(found)
    tolls = [rng.randint(1, 99) for _ in range(count)]
    links = zip(names, names[1:], tolls, strict=False)
    facts = [_WALK_FACT.format(here=a, there=b, toll=toll) for a, b, toll in links]
    rng.shuffle(facts)
    totals = zip(names[1:], accumulate(tolls), strict=True)
    return HiddenTexts(
        needles=tuple(facts),
        head=_WALK_HEAD,
        question=_WALK_QUESTION.format(start=names[0], count=count),
        answers=tuple(f"{name}: {total}" for name, total in totals),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Kind:
    """A kind of long answer."""

    draw: Callable[[random.Random, int], HiddenTexts]
    item: re.Pattern[str]  # one item of an answer, in groups
    separator: str  # between two items
    depths: tuple[float, float]  # percent: where the needles stand


_KINDS = {
    "recite": _Kind(draw=_draw_list, item=re.compile(r"(\d+)"), separator=" ", depths=(5, 30)),
    "weave": _Kind(
        draw=_draw_list, item=re.compile(r"(\d+): *(\d+)"), separator="\n", depths=(5, 30)
    ),
    "walk": _Kind(
        draw=_draw_walk,
        item=re.compile(r"([\w' -]+-[\w' -]+): *(\d+)"),
        separator="\n",
        depths=(2, 60),
    ),
}
