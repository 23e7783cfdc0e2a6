"""BABILong (arXiv 2406.10149): bAbI's questions on facts hidden in a long text.

Source: booydar/babilong at 7a6efee2. ``prompts.json`` holds its instructions and examples
(Apache-2.0 license, babilong/prompts.py), misprints and stray line breaks included.
"""

import random
from dataclasses import dataclass

from retrobench.core.spec import option
from retrobench.core.task import Prompt, Sample
from retrobench.tasks.babilong.worlds import WORLDS
from retrobench.tasks.local_files import shipped, text_field
from retrobench.tasks.records import Prose, Record, RecordsConfig, RecordsTask
from retrobench.tasks.scorers.babilong import LABELS, TASKS, score
from retrobench.tasks.substitute_texts import scattered

_THOUSANDS = (0, 1, 2, 4, 8, 16, 32, 64, 128, 256, 512)
LENGTHS = {f"{k}k": 1000 * k for k in _THOUSANDS} | {"1M": 1_000_000, "10M": 10_000_000}
NEW_TOKENS = 20


@dataclass(frozen=True, kw_only=True)
class BabilongConfig(RecordsConfig):
    """Options of ``task=babilong``."""

    tasks: tuple[str, ...] = option(
        TASKS[:5], "question sets (the leaderboard's are qa1 to qa5)", choices=TASKS
    )
    lengths: tuple[str, ...] = option(
        ("4k",), "tokens of the context; 0k: the facts alone", choices=tuple(LENGTHS)
    )


class BabilongTask(RecordsTask):
    """Official prompts with instruction, examples and format rule, as one user turn."""

    name = "babilong"
    figure_tasks = TASKS
    chance = {task: 1 / len(labels) for task, labels in LABELS.items()}
    Config = BabilongConfig
    config: BabilongConfig

    def parts(self) -> tuple[str, ...]:
        """Length by length, set by set, as the configurations and splits of the data set."""
        config = self.config
        return tuple(f"{length}/{task}" for length in config.lengths for task in config.tasks)

    def task_of(self, part: str) -> str:
        """The question set."""
        return part.partition("/")[2]

    def sample(self, part: str, index: int, raw: Record, prompt: Prompt) -> Sample | None:
        """Instruction, examples, format rule, context, question."""
        task, length = self.task_of(part), LENGTHS[part.partition("/")[0]]
        text, question = text_field(raw, "input"), text_field(raw, "question")
        target = text_field(raw, "target")
        if not target.strip():
            raise ValueError("'target' is empty")
        return Sample(
            id=f"{task}/{part.partition('/')[0]}/{index}",
            task=task,
            context=f"{_head(task)}<context>\n{text.strip()}",
            question=f"\n</context>\n\nQuestion: {question}".rstrip(),
            references=(target,),
            max_new_tokens=NEW_TOKENS,
            length=length,
            meta={"question": question},
        )

    def substitutes(self, part: str, rng: random.Random, prose: Prose) -> Record:
        """Facts of an invented world, in order, between sentences of prose."""
        facts, question, target = WORLDS[self.task_of(part)](rng)
        tokens = LENGTHS[part.partition("/")[0]]
        lines = prose.sentences(tokens - prose.tokens(" ".join(facts)), rng)
        text = " ".join(scattered(facts, lines, rng))
        return {"input": text, "question": f"{question} ", "target": target}

    def score(self, sample: Sample, text: str) -> float:
        """1 for the target and no other label."""
        return score(sample.task, text, sample.references, sample.meta["question"])


def _head(task: str) -> str:
    """What stands before the context."""
    parts = shipped(__file__)[task]
    return f"{parts['instruction']}\n\n{parts['examples']}\n\n{parts['post_prompt']}\n\n".lstrip()
