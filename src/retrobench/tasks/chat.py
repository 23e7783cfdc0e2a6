"""The chat template of a tokenizer: what it renders, and which BOS in it stands for itself."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from functools import cached_property
from typing import Any

from jinja2 import TemplateError

Turn = dict[str, str]
PROBE = [{"role": "user", "content": "a"}]
_TALK = [*PROBE, {"role": "assistant", "content": "b"}, *PROBE]


class ChatTemplate:
    """Renders conversations as ``tokenizer.apply_chat_template`` does."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer

    def render(self, turns: Sequence[Turn], **options: Any) -> str:
        """The conversation and the header of the next answer; ``options`` of transformers."""
        options = {"add_generation_prompt": True, **options}
        return self._tokenizer.apply_chat_template(list(turns), tokenize=False, **options)

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
