"""Needle in a haystack: a grid of depths and lengths."""

import random
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from itertools import product

from retrobench.core.cell import digest
from retrobench.core.spec import choice, option
from retrobench.core.task import Prompt, Sample
from retrobench.tasks.fitting.parts import PromptFactory, SampleGroup
from retrobench.tasks.generated import GeneratedTask, SamplingConfig
from retrobench.tasks.ruler import needles
from retrobench.tasks.ruler.needles import HiddenTexts
from retrobench.tasks.ruler.words import draw
from retrobench.tasks.scorers.ruler import score

BUILDER = 2  # raise when the samples change

# gkamradt/LLMTest_NeedleInAHaystack; scored by its key phrase, without a judge model.
_SANDWICH = HiddenTexts(
    needles=(
        "The best thing to do in San Francisco is eat a sandwich and sit in Dolores Park on a "
        "sunny day.",
    ),
    question=(
        "\n\nWhat is the best thing to do in San Francisco? Don't give information outside the "
        "document or repeat your findings"
    ),
    answers=("eat a sandwich and sit in Dolores Park",),
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
class NiahConfig(SamplingConfig):
    """Options of ``task=niah``."""

    depths: int = option(5, "depths between 0 and 100 percent, evenly spaced", low=1, high=101)
    needle: str = choice(
        ("ruler", "sandwich", "city"),
        "ruler: RULER's niah_single_2 texts; sandwich: the original; city: MInference's numbers",
    )
    num_needles: int = option(
        1, "needle=ruler: values of one key; the first at the depth, the rest evenly below", low=1
    )

    def __post_init__(self) -> None:
        if self.num_needles > 1 and self.needle != "ruler":
            raise ValueError(f"num_needles={self.num_needles} needs needle=ruler")


class NiahTask(GeneratedTask):
    """Needles at chosen depths among essay sentences; substring score."""

    name = "niah"
    Config = NiahConfig
    config: NiahConfig

    def fingerprint(self, prompt: Prompt) -> str:
        """Hash of builder version, tokenizer and essays."""
        essays = self._haystack.fingerprint
        return digest({"builder": BUILDER, "tokenizer": prompt.tokenizer_id, "essays": essays})

    def groups(self, prompt: Prompt) -> Iterator[SampleGroup]:
        """Length by length, depth by depth."""
        needle, seed, count = self.config.needle, self.config.seed, self.config.depths
        depths = [50.0] if count == 1 else [round(100 * i / (count - 1), 1) for i in range(count)]
        for length, depth in product(self.config.length, depths):
            options = [needle, self.config.num_needles, seed, length]
            yield SampleGroup(
                name=f"niah/{length}/{depth:g}",
                task="niah",
                length=length,
                max_new_tokens=128 if needle == "ruler" else 64,
                key=digest([self.fingerprint(prompt), *options]),
                factory=partial(self._factory, depth),
                example=partial(self._factory, 50.0, f"{seed}/{length}", 0),
                salt=f"/{needle}",
            )

    def score(self, sample: Sample, text: str) -> float:
        """Share of references in the answer (case-insensitive substrings)."""
        return score("niah", text, sample.references)

    def _factory(self, depth: float, seed: str, index: int) -> PromptFactory:
        hidden, count = self._hidden(random.Random(seed)), self.config.num_needles
        depths = [depth + i * (100 - depth) / count for i in range(count)]
        return needles.essay_factory(self._haystack, hidden, depths, depth=depth)

    def _hidden(self, rng: random.Random) -> HiddenTexts:
        if self.config.needle == "sandwich":
            return _SANDWICH
        count = self.config.num_needles
        numbers = tuple(draw("numbers", rng) for _ in range(count))
        if self.config.needle == "city":
            city = rng.choice(_CITIES)
            return HiddenTexts(
                needles=(f"The special magic {city} number is: {numbers[0]}.",),
                head=_CITY_HEAD,
                question=_CITY_QUESTION.format(city=city),
                answers=numbers,
            )
        key = draw("words", rng)
        head, question, answer_prefix = needles.wording("numbers", [key], count)
        return HiddenTexts(
            needles=tuple(needles.sentence("numbers", key, number) for number in numbers),
            head=head,
            question=question,
            answer_prefix=answer_prefix,
            answers=numbers,
        )
