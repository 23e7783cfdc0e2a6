"""Records scattered in a long text, to be extracted as JSON. Our own generator; no data needed.

Every record counts and none is asked for by name, so a method that keeps little of the context
fails here even where it finds a single needle.
"""

import json
import random
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial

from retrobench.core.cell import digest
from retrobench.core.spec import option
from retrobench.core.task import Prompt, Sample
from retrobench.tasks.fitting.parts import PromptFactory, SampleGroup
from retrobench.tasks.generated import GeneratedTask, SamplingConfig
from retrobench.tasks.ruler import needles
from retrobench.tasks.ruler.needles import HiddenTexts
from retrobench.tasks.scorers.text2json import score

_HEAD = (
    "The following text mentions parcels. For each it says who sent it, to which city, how many "
    "kilograms it weighs and on which day it left. Remember them.\n"
)
_QUESTION = (
    "\nExtract all {count} parcels from the text above as a JSON list, in the order in which they "
    'are mentioned. Each object has the fields "id", "sender", "city", "weight_kg" (a number) and '
    '"date" (YYYY-MM-DD). Write the JSON list and nothing else.'
)
_FORMS = (
    "Parcel {id} was sent by {sender} to {city}; it weighs {weight_kg} kg and left on {date}.",
    "On {date} {sender} sent parcel {id}, of {weight_kg} kg, to {city}.",
    "The parcel for {city} that left on {date} has the number {id}, weighs {weight_kg} kg and is "
    "from {sender}.",
)
_FIRST = ("Ada", "Boris", "Clara", "David", "Emma", "Felix", "Greta", "Hugo", "Iris", "Jonas")
_LAST = ("Stone", "Miller", "Berg", "Novak", "Silva", "Hansen", "Rossi", "Keller", "Moreau", "Lind")
_CITIES = ("Arles", "Bergen", "Cadiz", "Delft", "Evora", "Ghent", "Hull", "Izmir", "Jena", "Kiel")


@dataclass(frozen=True, kw_only=True)
class Text2JsonConfig(SamplingConfig):
    """Options of ``task=text2json``."""

    length: tuple[int, ...] = option(
        (8192,), "context lengths in tokens, answer included", low=512, high=4_194_304
    )
    records: int = option(
        16,
        "records in a text; about 60 tokens each, and as many in the answer",
        low=1,
        high=9000,
    )


class Text2JsonTask(GeneratedTask):
    """The score is the F1 of exact fields."""

    name = "text2json"
    Config = Text2JsonConfig
    config: Text2JsonConfig
    advice = ", or lower task.records"

    def groups(self, prompt: Prompt) -> Iterator[SampleGroup]:
        """Length by length."""
        records, seed = self.config.records, self.config.seed
        example = _listed(_draw(random.Random(f"{seed}/text2json"), records))
        room = 32 + int(1.2 * prompt.count(example))
        for length in self.config.length:
            yield SampleGroup(
                name=f"parcels/{length}",
                task="parcels",
                length=length,
                max_new_tokens=room,
                key=digest([self.fingerprint(prompt), length, records, seed]),
                factory=self._factory,
                example=partial(self._factory, f"{seed}/text2json", 0),
            )

    def score(self, sample: Sample, text: str) -> float:
        """F1 of exact fields."""
        return score(sample.task, text, sample.references)

    def _factory(self, seed: str, index: int) -> PromptFactory:
        rng = random.Random(seed)
        records = _draw(rng, self.config.records)
        hidden = HiddenTexts(
            needles=tuple(rng.choice(_FORMS).format(**record) for record in records),
            head=_HEAD,
            question=_QUESTION.format(count=len(records)),
            answers=tuple(json.dumps(record) for record in records),
        )
        depths = sorted(rng.uniform(0, 100) for _ in records)
        return needles.essay_factory(self._haystack, hidden, depths)


def _draw(rng: random.Random, count: int) -> list[dict[str, str | int]]:
    """Records with ids of their own; all other fields come again."""
    ids = rng.sample(range(1000, 10_000), count)
    return [
        {
            "id": f"P-{number}",
            "sender": f"{rng.choice(_FIRST)} {rng.choice(_LAST)}",
            "city": rng.choice(_CITIES),
            "weight_kg": rng.randint(2, 99),
            "date": f"{rng.randint(1970, 2019)}-{rng.randint(1, 12):02d}-{rng.randint(1, 28):02d}",
        }
        for number in ids
    ]


def _listed(records: list[dict[str, str | int]]) -> str:
    return json.dumps(records, indent=1)
