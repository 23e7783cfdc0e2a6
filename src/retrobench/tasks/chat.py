"""The chat template of a tokenizer: what it renders, its BOS, and think blocks in answers."""

import datetime
import re
from collections.abc import Sequence
from contextlib import suppress
from functools import cached_property
from typing import Any

from jinja2 import TemplateError

DATE = "2024-07-26"  # the day that Llama 3's templates show if nobody tells them another
MARKS = (  # of Qwen, DeepSeek, GLM, SmolLM and others; Magistral; Seed-OSS; EXAONE Deep
    ("<think>", "</think>"),
    ("[THINK]", "[/THINK]"),
    ("<seed:think>", "</seed:think>"),
    ("<thought>", "</thought>"),
)
Turn = dict[str, str]
PROBE = [{"role": "user", "content": "a"}]
_TALK = [*PROBE, {"role": "assistant", "content": "b"}, *PROBE]
_DIRECTIVES = "aAbBcdDeFgGhHIjklmMnpPrRStTuUVwWxXyY"  # of strftime, time zones and seconds aside
_NO_THINKING = {"enable_thinking": False, "thinking": False}  # Qwen and most; DeepSeek, Granite


class ChatTemplate:
    """Renders conversations as ``tokenizer.apply_chat_template`` does on one fixed day.

    ``date``: that day, YYYY-MM-DD. ``thinking``: ``off`` asks the template for none; ValueError if
    it opens a think block all the same.
    """

    def __init__(self, tokenizer: Any, date: str = DATE, thinking: str = "auto") -> None:
        self._tokenizer = tokenizer
        self._date = date
        self._switches: dict[str, Any] = dict(_NO_THINKING) if thinking == "off" else {}
        if date != DATE:
            self._switches["date_string"] = f"{datetime.date.fromisoformat(date):%d %b %Y}"
        if thinking == "off" and self.open_mark:
            raise ValueError(
                f"model.thinking=off: the chat template opens {self.open_mark} in every answer and "
                "knows no enable_thinking=false; use model.thinking=strip, or another template "
                "(model.chat_template)"
            )

    def render(self, turns: Sequence[Turn], **options: Any) -> str:
        """The conversation and the header of the next answer; ``options`` of transformers."""
        return self._render(turns, self._date, {**self._switches, **options})

    def conversation(self, turns: Sequence[tuple[str, str]]) -> str:
        """(role, text) pairs as text. Equal roles in a row become one where they must alternate."""
        try:
            return self.render([{"role": role, "content": text} for role, text in turns])
        except TemplateError:
            joined: list[Turn] = []
            for role, text in turns:
                if joined and joined[-1]["role"] == role:
                    text = f"{joined.pop()['content']}\n\n{text}"
                joined.append({"role": role, "content": text})
            return self.render(joined)

    def _render(self, turns: Sequence[Turn], date: str, options: dict[str, Any]) -> str:
        if self._has_clock:
            options = {"chat_template": _stopped_clock(date) + self._text, **options}
        options = {"add_generation_prompt": True, **options}
        return self._tokenizer.apply_chat_template(list(turns), tokenize=False, **options)

    @cached_property
    def _text(self) -> str:
        return self._tokenizer.get_chat_template()

    @cached_property
    def _has_clock(self) -> bool:
        return "strftime_now" in self._text

    @cached_property
    def bos(self) -> str:
        """The BOS that the template puts before a conversation, and nowhere else.

        Empty if there is none, or if it also starts a turn (ChatML's ``<|im_start|>`` may be a
        tokenizer's BOS): such a BOS belongs to the text of the turn.
        """
        bos = self._tokenizer.bos_token or ""
        text = self.render(PROBE)
        if not bos or not text.startswith(bos):
            return ""
        with suppress(TemplateError):  # raised by a template of one turn
            text = self.render(_TALK)
        return bos if text.count(bos) == 1 else ""

    @cached_property
    def open_mark(self) -> str:
        """The mark of the think block that an answer's header opens; empty if it opens none."""
        return open_mark(self.render(PROBE))

    @cached_property
    def shows_date(self) -> bool:
        """Whether prompts would be others without ``date``."""
        options = {k: v for k, v in self._switches.items() if k != "date_string"}
        return self.render(PROBE) != self._render(PROBE, "1999-12-31", options)


def _stopped_clock(date: str) -> str:
    """A macro in the place of the function that gives templates the time of day."""
    day = datetime.datetime.fromisoformat(date)
    codes = [f"%{flag}{code}" for flag in ("-", "") for code in _DIRECTIVES] + ["%%"]
    shown = "".join(f" | replace({code!r}, {day.strftime(code)!r})" for code in codes)
    return f"{{% macro strftime_now(format) -%}}{{{{ format{shown} }}}}{{%- endmacro %}}\n"


def transcript(turns: Sequence[tuple[str, str]]) -> str:
    """A conversation as plain text that ends where the next answer starts (base models)."""
    lines = [f"{role.capitalize()}: {text}" for role, text in turns]
    return "\n\n".join([*lines, "Assistant:"])


def open_mark(text: str) -> str:
    """The mark of the think block in which a text ends; empty if it ends in none."""
    return next((mark for mark, end in MARKS if text.rfind(mark) > text.rfind(end)), "")


def without_thinking(text: str) -> str:
    """A text without its think blocks; of one that is still open, nothing is left."""
    for mark, end in MARKS:
        text = re.sub(rf"{re.escape(mark)}.*?({re.escape(end)}\s*|\Z)", "", text, flags=re.DOTALL)
    return text
