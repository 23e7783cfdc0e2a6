"""What a benchmark must provide: samples with references, and a score in [0, 1] for an answer."""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Protocol, Self


@dataclass(frozen=True, slots=True, kw_only=True)
class FollowUp:
    """A further question on a sample's context, asked in a later turn (protocol ``multi_turn``).

    ``max_new_tokens`` 0: as the sample; ``meta`` adds to the sample's. ``gold`` is the text that
    stands for the answer in later turns, where they find no answer of the model.
    """

    question: str
    references: tuple[str, ...]
    answer_prefix: str = ""
    max_new_tokens: int = 0
    meta: Mapping[str, Any] = field(default_factory=dict)
    gold: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """One prompt with its references.

    The user's turn is ``context + question``; they are kept apart so that a protocol may prefill
    the context alone. ``answer_prefix`` follows the assistant header: the model continues it.
    ``id`` is unique in its cell and depends only on (task, length, seed, index), never on how many
    samples were asked for. ``error`` says why a record cannot be asked (file, line); it is not run
    and becomes a row of status ``error``. ``follow_ups`` are other questions that the context
    answers and that no turn before has answered already; most tasks have none. ``history`` holds
    (role, text) of a conversation before the user's turn (MRCR). ``earlier``: what a later turn
    finds of the turns before (``own``: their questions and the model's answers; ``reference``:
    their questions and ``gold`` answers; ``none``: the context alone).
    """

    id: str
    task: str
    max_new_tokens: int
    context: str = ""
    question: str = ""
    references: tuple[str, ...] = ()
    answer_prefix: str = ""
    stop: tuple[str, ...] = ()
    length: int = 0
    meta: Mapping[str, Any] = field(default_factory=dict)
    error: str = ""
    follow_ups: tuple[FollowUp, ...] = ()
    history: tuple[tuple[str, str], ...] = ()
    earlier: str = "own"
    gold: str = ""

    @property
    def user_text(self) -> str:
        """The user's turn as one string."""
        return self.context + self.question

    def turns(self, max_turns: int) -> tuple[Self, ...]:
        """The conversation on this context as one sample per turn, at most ``max_turns``."""
        samples = [self, *(self._follow(other) for other in self.follow_ups)][:max_turns]
        return tuple(
            replace(
                sample,
                id=f"{self.id}/turn{turn}",
                meta={**sample.meta, "turn": turn, "turns": len(samples)},
                follow_ups=(),
            )
            for turn, sample in enumerate(samples, 1)
        )

    def _follow(self, other: FollowUp) -> Self:
        """The sample of a further question."""
        return replace(
            self,
            question=other.question,
            references=other.references,
            answer_prefix=other.answer_prefix,
            max_new_tokens=other.max_new_tokens or self.max_new_tokens,
            meta={**self.meta, **other.meta},
            gold=other.gold,
        )


class Prompt(Protocol):
    """What a task may ask of the prompt builder: lengths in tokens, and the chat wrapping."""

    @property
    def tokenizer_id(self) -> str:
        """Stable identity of tokenizer and chat template (a content hash)."""
        ...

    def count(self, text: str) -> int:
        """Tokens of ``text`` without special tokens."""
        ...

    def wrap(self, user_text: str) -> str:
        """``user_text`` as one user turn in the chat template (unchanged for base models)."""
        ...


class Task(ABC):
    """A benchmark. ``Config`` is a frozen dataclass; its fields are the options of ``task.*``."""

    name: ClassVar[str]
    Config: ClassVar[type]
    measure: ClassVar[str | None] = None  # the only one that makes sense, where there is one
    # options that ask for more samples of a cell, which stay out of its key
    counts: ClassVar[tuple[str, ...]] = ("samples",)
    # how reports show its rows; none of it may need torch
    display_names: ClassVar[Mapping[str, str]] = {}  # of sub-tasks, in figures
    short_names: ClassVar[Mapping[str, str]] = {}  # of sub-tasks, in the columns of tables
    figure_tasks: ClassVar[tuple[str, ...]] = ()  # sub-tasks in the order of a figure; (): all
    chance: ClassVar[Mapping[str, float]] = {}  # mean score of guessing, by sub-task; else 0
    num_tasks: ClassVar[int] = 0  # sub-tasks of the official average; 0: there is none

    def __init__(self, config: Any, data_root: str | None = None) -> None:
        self.config = config
        self.data_root = data_root

    @abstractmethod
    def fingerprint(self, prompt: Prompt) -> str:
        """Hash of everything that decides the samples: data, builder version, tokenizer."""

    @abstractmethod
    def samples(self, prompt: Prompt) -> Iterator[Sample]:
        """The samples in their fixed order."""

    @abstractmethod
    def score(self, sample: Sample, text: str) -> float:
        """Score of an answer in [0, 1]; multiplied by 100 only where it is printed."""

    @classmethod
    def aggregate(cls, rows: Any) -> Iterator[tuple[str, Any]]:
        """Official averages: (title, table of texts with a row per cell), from a DataFrame."""
        return iter(())

    def model_identity(self) -> dict[str, Any] | None:
        """What stands in for the model (part of the cell key), if this task needs no weights."""
        return None

    def notes(self) -> tuple[str, ...]:
        """What every table must say beside the scores (e.g. ``haystack: substitute prose``)."""
        return ()
