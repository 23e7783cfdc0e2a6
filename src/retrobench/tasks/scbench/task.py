"""SCBench (arXiv 2412.10319): conversations and separate requests on one shared context.

Source: microsoft/MInference at fb56c917. ``prompts.json`` holds the templates of its script (MIT
license, scbench/eval_utils.py), misprints included.
"""

import random
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from retrobench.core.spec import choice, option
from retrobench.core.task import Prompt, Sample
from retrobench.tasks.record_files import BadRecord
from retrobench.tasks.records import Prose, Record, RecordsTask, SizedRecordsConfig
from retrobench.tasks.scbench import turns
from retrobench.tasks.scbench.substitute import SUBSTITUTES
from retrobench.tasks.scbench.turns import TASKS, Turn
from retrobench.tasks.scorers.scbench import function, score


@dataclass(frozen=True, kw_only=True)
class ScbenchConfig(SizedRecordsConfig):
    """Options of ``task=scbench``."""

    tasks: tuple[str, ...] = option(TASKS, "data sets", choices=TASKS)
    earlier: str = choice(
        ("reference", "own", "none"),
        "what a turn finds of the turns before: reference, their reference answers (official); "
        "own, the model's answers (official --disable_golden_context); none, nothing (official "
        "--same_context_different_query)",
    )
    turns: int = option(5, "questions on a context, at most (as protocol.turns)", low=1, high=8)
    max_tokens: int = option(
        131072,
        "tokens of prompt and answers; longer prompts lose their middle",
        low=2000,
    )


class ScbenchTask(RecordsTask):
    """The official prompts; ``protocol=multi_turn`` asks all questions, others only the first."""

    name = "scbench"
    figure_tasks = TASKS
    chance = {"scbench_choice_eng": 1 / 4}
    Config = ScbenchConfig
    config: ScbenchConfig

    def __init__(self, config: ScbenchConfig, data_root: str | None = None) -> None:
        super().__init__(config, data_root)
        self._asked: dict[tuple[str, str], dict[str, str]] = {}  # functions of a repository
        self._whole: set[str] = set()  # data sets whose functions are all known

    def parts(self) -> tuple[str, ...]:
        """One file for each data set."""
        return self.config.tasks

    def sample(self, part: str, index: int, raw: Record, prompt: Prompt) -> Sample | None:
        """A context with its questions."""
        chat = prompt.wrap("a") != "a"
        found = turns.read(part, raw, self.config.turns)
        self._register(part, raw)
        alone = self.config.earlier == "none"
        first, *others = [
            turns.as_follow_up(part, turn, chat=chat, first=i == 0, alone=alone)
            for i, turn in enumerate(found)
        ]
        return Sample(
            id=f"{part}/{index}",
            task=part,
            context=turns.head(part, found[0], alone) + turns.context(raw),
            question=first.question,
            references=first.references,
            max_new_tokens=first.max_new_tokens,
            meta={"truncate": self._truncation(part, found), **first.meta},
            follow_ups=tuple(others),
            earlier=self.config.earlier,
            gold=first.gold,
        )

    def substitutes(self, part: str, rng: random.Random, prose: Prose) -> Record:
        """A context with ``turns`` questions in the schema of the data set."""
        config = self.config
        return SUBSTITUTES[part](config.substitute_tokens, config.turns, rng, prose)

    def score(self, sample: Sample, text: str) -> float:
        """The turn's metric."""
        kind, meta = sample.meta["kind"], sample.meta
        if kind == "scbench_repoqa":
            return function(text, meta["function"], self._functions(sample.task, meta["repo"]))
        return score(kind, text, sample.references)

    def _truncation(self, part: str, found: Sequence[Turn]) -> dict[str, Any]:
        """The official script cuts the rendered first prompt, or the shared context alone."""
        tokens = self.config.max_tokens - turns.room(part, len(found))
        alone = self.config.earlier == "none"
        of, spare = ("context", 1000) if alone else ("prompt", 0)
        return {"side": "middle", "tokens": max(2, tokens - spare), "of": of}

    def _functions(self, part: str, repo: str) -> dict[str, str]:
        """Functions asked for in a repository, by name, over all records of the file."""
        if part not in self._whole and (files := self._files(part)):
            for _, raw in self._read(files):
                self._register(part, raw)
        self._whole.add(part)
        return self._asked[part, repo]

    def _register(self, part: str, raw: Record | BadRecord) -> None:
        """Keep a record's functions. A malformed record has a row of its own that says so."""
        with suppress(ValueError):
            known = [] if isinstance(raw, BadRecord) else turns.read(part, raw, self.config.turns)
            for turn in known:
                if turn.kind == "scbench_repoqa":
                    functions = self._asked.setdefault((part, turn.meta["repo"]), {})
                    functions.setdefault(turn.meta["function"], turn.gold)
