"""InfiniteBench (arXiv 2402.13718): books, dialogues, code, arithmetic and retrieval.

Source: OpenBMB/InfiniteBench at 88b3daa6. ``prompts.json`` holds the templates that its scripts use
for open models (MIT license, src/prompt.py: yarn_mistral_templates).
"""

import random
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from retrobench.core.spec import option
from retrobench.core.task import Prompt, Sample
from retrobench.tasks.infinitebench.substitute import SUBSTITUTES
from retrobench.tasks.local_files import four_options, shipped, text_field
from retrobench.tasks.records import Prose, Record, RecordsTask, SizedRecordsConfig
from retrobench.tasks.scorers.infinitebench import TASKS, score

NEW_TOKENS = {  # src/eval_utils.py
    "passkey": 6,
    "number_string": 12,
    "kv_retrieval": 50,
    "longbook_sum_eng": 1200,
    "longbook_choice_eng": 40,
    "longbook_qa_eng": 40,
    "longbook_qa_chn": 40,
    "longdialogue_qa_eng": 40,
    "math_find": 3,
    "math_calc": 30000,
    "code_run": 5,
    "code_debug": 5,
}
_CHOICES = ("longbook_choice_eng", "code_debug")
_ONE_ANSWER = ("passkey", "number_string", "kv_retrieval", "code_run", "math_find")
_CALL = re.compile(r"func_[0-9]+\(-?[0-9]+\)")


@dataclass(frozen=True, kw_only=True)
class InfiniteBenchConfig(SizedRecordsConfig):
    """Options of ``task=infinitebench``."""

    tasks: tuple[str, ...] = option(TASKS, "data sets", choices=TASKS)
    max_prompt_tokens: int = option(
        131072, "longer prompts lose their middle (official for 128K windows)", low=500
    )
    max_new_tokens: int = option(
        0, "room for every answer; 0: the official room of each data set (3 to 30000)", low=0
    )
    chat: bool = option(
        False, "wrap prompts in the chat template; the official scripts for open models do not"
    )


class InfiniteBenchTask(RecordsTask):
    """Official prompts for open models, middle truncation and metrics."""

    name = "infinitebench"
    figure_tasks = TASKS
    chance = dict.fromkeys(_CHOICES, 1 / 4)
    Config = InfiniteBenchConfig
    config: InfiniteBenchConfig

    def parts(self) -> tuple[str, ...]:
        """One file for each data set."""
        return self.config.tasks

    def sample(self, part: str, index: int, raw: Record, prompt: Prompt) -> Sample | None:
        """The filled template, cut right after the context."""
        head, _, tail = shipped(__file__)[part].partition("{context}")
        slots = _slots(part, raw)
        return Sample(
            id=f"{part}/{index}",
            task=part,
            context=head.format(**slots) + text_field(raw, "context"),
            question=tail.format(**slots),
            references=_references(part, raw),
            max_new_tokens=raw.get("max_new_tokens") or self._room(part),
            meta={
                "chat": self.config.chat,
                "truncate": {
                    "side": "middle",
                    "tokens": self.config.max_prompt_tokens,
                    "joint": True,
                    "even": True,
                },
            },
        )

    def substitutes(self, part: str, rng: random.Random, prose: Prose) -> Record:
        """A record in the schema of the data set."""
        tokens = self.config.substitute_tokens
        room = min(self._room(part), tokens // 2)
        return {**SUBSTITUTES[part](tokens - room, rng, prose), "max_new_tokens": room}

    def score(self, sample: Sample, text: str) -> float:
        """The data set's metric."""
        return score(sample.task, text, sample.references)

    def _room(self, part: str) -> int:
        return self.config.max_new_tokens or NEW_TOKENS[part]


def _slots(task: str, raw: Record) -> dict[str, str]:
    """Values of a template's slots, the context aside."""
    question = text_field(raw, "input")
    slots = {"input": question, "question": question}
    if task in _CHOICES:
        listed = zip("ABCD", four_options(raw), strict=True)
        slots |= {f"OPTION_{letter}": text for letter, text in listed}
    if task == "code_run":
        if not (call := _CALL.search(question)):
            raise ValueError("'input' names no call of func_N(M)")
        slots |= {"func_call": call.group(), "func": call.group().partition("(")[0]}
    if task == "math_find":
        if not (wanted := re.search(r"The .+ of", question)):
            raise ValueError("'input' asks for no number (The ... of)")
        name = wanted.group().lower().removesuffix(" of")
        slots["prefix"] = f"What is {name} in the following list?"
    return slots


def _references(task: str, raw: Record) -> tuple[str, ...]:
    """Answers as text; of a choice, the option and its letter."""
    answer: Any = raw.get("answer")
    answers = answer if isinstance(answer, list) else [answer]
    if task == "math_calc" and answers and isinstance(answers[0], list):
        answers = answers[0]  # some versions of the file nest the list
    kinds = (int, float, str) if task.startswith(("math", "code_run")) else (str,)
    if not answers or not all(type(value) in kinds for value in answers):
        raise ValueError("'answer' must be text, or a list of at least one answer")
    texts = tuple(map(str, answers))
    if task in _CHOICES:
        return _choice(texts, four_options(raw))
    numbers = task == "code_run" or task.startswith("math")
    if numbers and not all(re.fullmatch(r"-?\d+(\.\d+)?", text) for text in texts):
        raise ValueError(f"'answer' must be a number, got {texts[0][:40]!r}")
    return texts[:1] if task in _ONE_ANSWER else texts


def _choice(answers: tuple[str, ...], options: Sequence[str]) -> tuple[str, ...]:
    if len(answers) == 2 and answers[1] in tuple("ABCD"):
        return answers
    if len(answers) != 1 or answers[0] not in options:
        raise ValueError("'answer' is none of the 'options'")
    return answers[0], "ABCD"[options.index(answers[0])]
