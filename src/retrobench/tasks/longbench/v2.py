"""LongBench v2 (arXiv 2412.15204): four-way multiple choice over 8K to 2M words."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from retrobench.core.cell import digest
from retrobench.core.spec import option
from retrobench.core.task import Prompt, Sample, Task
from retrobench.tasks import record_files
from retrobench.tasks.local_files import fetch_command, text_field
from retrobench.tasks.record_files import BadRecord, error_sample, place
from retrobench.tasks.scorers.longbench_v2 import score

BUILDER = 1
NEW_TOKENS = 128
_HEAD = "Please read the following text and answer the question below.\n\n<text>\n"
_QUESTION = (
    "\n</text>\n\nWhat is the correct answer to this question: $Q$\nChoices:\n"
    "(A) $C_A$\n(B) $C_B$\n(C) $C_C$\n(D) $C_D$\n\n"
    'Format your response as follows: "The correct answer is (insert answer here)".'
)
_SLOTS = {"$Q$": "question", **{f"$C_{letter}$": f"choice_{letter}" for letter in "ABCD"}}
_DIFFICULTIES, _LENGTHS = ("easy", "hard"), ("short", "medium", "long")
_HINT = f"fetch it with {fetch_command('longbench_v2')}"


@dataclass(frozen=True, kw_only=True)
class LongBenchV2Config:
    """Options of ``task=longbench_v2``."""

    difficulty: tuple[str, ...] = option(
        _DIFFICULTIES, "questions of these difficulties", choices=_DIFFICULTIES
    )
    lengths: tuple[str, ...] = option(
        _LENGTHS, "short: under 32K words; medium: to 128K; long: beyond", choices=_LENGTHS
    )
    samples: int = option(0, "first samples; 0: all", low=0)
    max_prompt_tokens: int = option(
        120000, "longer prompts lose their middle (official for 128K windows)", low=500
    )


class LongBenchV2Task(Task):
    """Zero-shot prompts with direct answers. The official script samples at temperature 0.1."""

    name = "longbench_v2"
    Config = LongBenchV2Config
    chance = {"longbench_v2": 1 / 4}
    config: LongBenchV2Config

    def fingerprint(self, prompt: Prompt) -> str:
        """Hash of builder version, tokenizer and the file's content."""
        content = record_files.content_hash(self._path())
        return digest({"builder": BUILDER, "tokenizer": prompt.tokenizer_id, "file": content})

    @classmethod
    def aggregate(cls, rows: Any) -> Iterator[tuple[str, Any]]:
        """Accuracy by difficulty and by length."""
        from retrobench.tasks.longbench import averages  # brings pandas, which no run needs

        yield "LongBench v2 accuracy", averages.longbench_v2(rows)

    def samples(self, prompt: Prompt) -> Iterator[Sample]:
        """In file order."""
        records = record_files.read(self._path(), self.name)
        found = (self._sample(index, *record) for index, record in enumerate(records))
        kept = (sample for sample in found if sample is not None)
        return islice(kept, self.config.samples or None)

    def score(self, sample: Sample, text: str) -> float:
        """1 for the right letter."""
        return score(sample.task, text, sample.references)

    def _path(self) -> Path:
        folder = Path(self.data_root or "data") / "longbench_v2"
        if found := record_files.find(folder, "data"):
            return found[0]
        raise ValueError(f"LongBench v2's data.jsonl or data.json not found in {folder}: {_HINT}")

    def _sample(self, index: int, number: int, raw: Mapping[str, Any] | BadRecord) -> Sample | None:
        """The sample of a record, or None if the options leave it out."""
        if isinstance(raw, BadRecord):
            return error_sample(self.name, raw)
        try:
            _check(raw)
        except ValueError as error:
            message = f"{place(self._path(), number)}: {error}"
            return error_sample(self.name, BadRecord(number, message))
        config = self.config
        if raw["difficulty"] not in config.difficulty or raw["length"] not in config.lengths:
            return None
        return Sample(
            id=f"{self.name}/{index}/{raw['_id']}",
            task=self.name,
            context=_HEAD + _fill(raw["context"].strip(), raw),
            question=_fill(_QUESTION, raw),
            references=(raw["answer"],),
            max_new_tokens=NEW_TOKENS,
            meta={
                "truncate": {"side": "middle", "tokens": config.max_prompt_tokens, "joint": True},
                "difficulty": raw["difficulty"],
                "length_class": raw["length"],
                "domain": raw.get("domain"),
            },
        )


def _fill(text: str, raw: Mapping[str, Any]) -> str:
    """Fills slot by slot, as the official script: ``$Q$`` within a document is filled as well."""
    for slot, name in _SLOTS.items():
        text = text.replace(slot, raw[name].strip())
    return text


def _check(raw: Mapping[str, Any]) -> None:
    """ValueError for a missing field or an unknown value."""
    for name in ("_id", "context", "answer", "difficulty", "length", *_SLOTS.values()):
        text_field(raw, name)
    for name, allowed in (("answer", "ABCD"), ("difficulty", _DIFFICULTIES), ("length", _LENGTHS)):
        if raw[name] not in tuple(allowed):
            raise ValueError(f"{name!r} is {raw[name]!r}, not one of {', '.join(allowed)}")
