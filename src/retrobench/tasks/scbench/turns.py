"""The questions of a record: what is asked, what scores it, how much room it has."""

import re
from dataclasses import dataclass, field
from typing import Any

from retrobench.core.task import FollowUp
from retrobench.tasks.local_files import four_options, is_text_list, shipped, text_field
from retrobench.tasks.records import Record

NEW_TOKENS = {  # by the kind of a turn
    "scbench_kv": 150,
    "scbench_prefix_suffix": 150,
    "scbench_vt": 30,
    "scbench_repoqa": 1024,
    "scbench_qa_eng": 40,
    "scbench_qa_chn": 40,
    "scbench_choice_eng": 40,
    "scbench_many_shot": 10,
    "scbench_summary": 200,
    "scbench_mf": 5,
}
MIXED = {  # a turn says which of them it is; the room differs from that of the kinds alone
    "scbench_summary_with_needles": {"scbench_summary": 800, "scbench_passkey": 15},
    "scbench_repoqa_and_kv": {"scbench_repoqa": 1024, "scbench_kv": 80},
}
TASKS = (*NEW_TOKENS, *MIXED)
_LETTER_BY_LETTER = ("scbench_qa_chn", "scbench_vt", "scbench_many_shot")
"""The official scores walk over the answer: where it is text and no list, over its characters."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Turn:
    """A question of a record. ``slots`` fill the templates, ``gold`` stands for the answer."""

    kind: str
    slots: dict[str, str]
    references: tuple[str, ...]
    gold: str
    max_new_tokens: int
    meta: dict[str, Any] = field(default_factory=dict)


def room(task: str, count: int) -> int:
    """Tokens that the official script keeps free for the answers of so many turns."""
    if task in MIXED:
        return sum(MIXED[task].values()) * count // 2
    return NEW_TOKENS[task] * count


def context(raw: Record) -> str:
    """The shared text; some data sets call it ``input``."""
    return text_field(raw, "context" if "context" in raw else "input")


def read(task: str, raw: Record, most: int) -> list[Turn]:
    """The first questions of a record; ValueError if there are none or one is malformed."""
    listed = raw.get("multi_turns")
    if not isinstance(listed, list) or not listed:
        raise ValueError("'multi_turns' must be a list of at least one question")
    found = []
    for number, turn in enumerate(listed[:most], 1):
        if not isinstance(turn, dict):
            raise ValueError(f"turn {number}: not an object")
        try:
            found.append(_turn(task, raw, turn))
        except ValueError as error:
            raise ValueError(f"turn {number}: {error}") from error
    return found


def _turn(task: str, raw: Record, turn: Record) -> Turn:
    kind, new_tokens, meta = task, NEW_TOKENS.get(task, 0), {}
    if task in MIXED:
        kind = text_field(turn, "task")
        if kind not in MIXED[task]:
            raise ValueError(f"'task' is {kind!r}, not one of {', '.join(MIXED[task])}")
        new_tokens = MIXED[task][kind]
    if kind == "scbench_repoqa":
        meta = {"repo": text_field(raw, "repo"), "function": text_field(turn, "name")}
    return Turn(
        kind=kind,
        slots=_slots(kind, turn),
        references=_references(kind, turn),
        gold=str(turn["answer"]),
        max_new_tokens=new_tokens,
        meta={"kind": kind, **meta},
    )


def _slots(kind: str, turn: Record) -> dict[str, str]:
    question = text_field(turn, "input")
    slots = {"input": question, "question": question}
    if kind == "scbench_choice_eng":
        listed = zip("ABCD", four_options(turn), strict=True)
        slots |= {f"OPTION_{letter}": text for letter, text in listed}
    if kind == "scbench_mf":
        wanted = re.search(r"The .+ is", question)
        if not wanted:
            raise ValueError("'input' asks for no number (The ... is)")
        slots["prefix"] = f"What is {wanted.group().lower().removesuffix(' is')}?"
    return slots


def _references(kind: str, turn: Record) -> tuple[str, ...]:
    """What the official metric compares with, as texts."""
    answer = turn.get("answer")
    if kind == "scbench_mf":
        number = answer[0] if isinstance(answer, list) and answer else answer
        if type(number) not in (int, float):
            raise ValueError("'answer' must be a number")
        return (str(number),)
    if kind in _LETTER_BY_LETTER and is_text_list(answer) and answer:
        return tuple(answer)
    text = text_field(turn, "answer")
    if not text:
        raise ValueError("'answer' is empty")
    if kind in _LETTER_BY_LETTER:
        return tuple(text)
    if kind == "scbench_choice_eng":
        options = four_options(turn)
        if text not in options:
            raise ValueError("'answer' is none of the 'options'")
        return text, "ABCD"[options.index(text)]
    return (text,)


def head(task: str, first: Turn, alone: bool) -> str:
    """What stands before the context. For questions on their own it has no question in it."""
    text = shipped(__file__)[task]["shared" if alone else "first"].partition("{context}")[0]
    prefix = first.slots["input"] if alone else first.slots.get("prefix", "")
    return text.format(prefix=prefix)


def as_follow_up(task: str, turn: Turn, *, chat: bool, first: bool, alone: bool) -> FollowUp:
    """A turn as it is asked: after the context, after an answer, or on its own."""
    templates = shipped(__file__)[task]
    if alone:
        text = templates["shared_query"]
    elif first:
        text = templates["first"].partition("{context}")[2]
    else:
        text = templates["next_chat"] if chat else templates["next"].removeprefix("{pre_ans}")
    starts = chat and not (first or alone) and task == "scbench_summary"
    return FollowUp(
        question=text.format(**turn.slots),
        references=turn.references,
        answer_prefix="This paper" if starts else "",
        max_new_tokens=turn.max_new_tokens,
        meta=turn.meta,
        gold=turn.gold,
    )
