"""AIME 2024 and 2025 and GPQA: reasoning questions with long answers, scored by the boxed one."""

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from retrobench.core.cell import digest
from retrobench.core.spec import option
from retrobench.core.task import Prompt, Sample, Task
from retrobench.tasks.local_files import fetch_command, read_json

BUILDER = 1
_RULE = "\n\nPlease reason step by step, and put your final answer within \\boxed{}."
_LETTER_RULE = (
    "\n\nPlease reason step by step, and put the letter of your final answer within \\boxed{}."
)
_TASKS = ("aime24", "aime25", "gpqa")


@dataclass(frozen=True, kw_only=True)
class ReasoningConfig:
    """Options of ``task=reasoning``."""

    tasks: tuple[str, ...] = option(("aime24",), "question sets", choices=_TASKS)
    samples: int = option(0, "first questions of each set; 0: all", low=0)
    max_new_tokens: int = option(32768, "room for the answer", low=16)
    repeats: int = option(
        1,
        "answers to each question, for pass@k (with engine.temperature)",
        low=1,
        high=1024,
        added=True,
    )


class ReasoningTask(Task):
    """AIME's answers are whole numbers and GPQA's are letters, so equality is exact."""

    name = "reasoning"
    Config = ReasoningConfig
    chance = {"gpqa": 1 / 4}
    counts = ("samples", "repeats")
    config: ReasoningConfig

    def fingerprint(self, prompt: Prompt) -> str:
        """Hash of builder version, tokenizer, answer length and questions."""
        parts = [self._read(task) for task in self.config.tasks]
        return digest([BUILDER, prompt.tokenizer_id, self.config.max_new_tokens, parts])

    def samples(self, prompt: Prompt) -> Iterator[Sample]:
        """Set by set, in file order."""
        for task in self.config.tasks:
            for index, raw in enumerate(self._read(task)[: self.config.samples or None]):
                sample = self._sample(task, index, raw)
                yield sample
                if not sample.error:
                    yield from (_again(sample, repeat) for repeat in range(1, self.config.repeats))

    @classmethod
    def aggregate(cls, rows: Any) -> Iterator[tuple[str, Any]]:
        """pass@k of the questions with several answers."""
        from retrobench.tasks import pass_at_k  # brings pandas, which no run needs

        yield "pass@k (x100)", pass_at_k.table(rows)

    def score(self, sample: Sample, text: str) -> float:
        """1 if the last boxed answer is the reference."""
        return float(_normal(boxed(text) or "") == sample.references[0])

    def _read(self, task: str) -> list[Any]:
        path = Path(self.data_root or "data") / "reasoning" / f"{task}.json"
        if not path.exists():
            raise ValueError(
                f"{path.name} not found in {path.parent}: fetch it with {fetch_command(task)}, or "
                "write a JSON list of objects with `question`, `answer` and, for letters, `choices`"
            )
        rows = read_json(path, task)
        if not isinstance(rows, list) or not rows:
            raise ValueError(f"{path} must hold a JSON list of questions")
        return rows

    def _sample(self, task: str, index: int, raw: Any) -> Sample:
        sample = Sample(id=f"{task}/{index}", task=task, max_new_tokens=self.config.max_new_tokens)
        try:
            question, answer = _checked(raw)
        except ValueError as error:
            return replace(sample, error=f"{task}.json, item {index + 1}: {error}")
        return replace(sample, question=question, references=(answer,))


def _again(sample: Sample, repeat: int) -> Sample:
    """The same question once more: its answer is sampled with another seed."""
    return replace(sample, id=f"{sample.id}/repeat{repeat}", meta={"repeat": repeat})


def boxed(text: str) -> str | None:
    r"""Content of the last ``\boxed{...}``, with the braces inside it; None without a box."""
    start = text.rfind("\\boxed{")
    if start < 0:
        return None
    start += len("\\boxed{")
    depth = 1
    for end in range(start, len(text)):
        depth += {"{": 1, "}": -1}.get(text[end], 0)
        if depth == 0:
            return text[start:end]
    return None


def _normal(answer: str) -> str:
    r"""A number without leading zeros, or a letter; ``\text{...}`` and brackets are dropped."""
    text = re.sub(r"\\text\s*\{([^}]*)\}", r"\1", answer).strip(" $().\n")
    return str(int(text)) if re.fullmatch(r"\d{1,12}", text) else text


def _checked(raw: Any) -> tuple[str, str]:
    """(prompt, reference) of a record; ValueError if it is not a question with an answer."""
    if not isinstance(raw, dict) or not isinstance(raw.get("question"), str):
        raise ValueError("'question' is missing or not a string")
    answer, choices = str(raw.get("answer", "")).strip(), raw.get("choices")
    if not choices:
        if not re.fullmatch(r"\d{1,12}", answer):
            raise ValueError(f"'answer' must be a whole number, got {json.dumps(answer)[:40]}")
        return raw["question"] + _RULE, _normal(answer)
    if not isinstance(choices, list) or len(choices) > 10:
        raise ValueError("'choices' must be a list of at most 10 answers")
    letters = "ABCDEFGHIJ"[: len(choices)]
    if answer not in tuple(letters):
        raise ValueError(f"'answer' must be one of {', '.join(letters)}")
    listed = "\n".join(f"({k}) {choice}" for k, choice in zip(letters, choices, strict=True))
    return f"{raw['question']}\n{listed}{_LETTER_RULE}", answer
