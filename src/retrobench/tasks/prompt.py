"""From sample to token ids: the only place for chat template, truncation and stop strings."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from retrobench.core.task import Sample


class PromptTooLong(ValueError):
    """The prompt does not fit the model's context. It is never cut silently."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EncodedPrompt:
    """Token ids of a prompt; ``context_tokens`` of them come before the question."""

    ids: list[int]
    context_tokens: int
    text_hash: str
    truncated: bool = False

    @property
    def num_tokens(self) -> int:
        """Length of the prompt, special tokens included."""
        return len(self.ids)


class PromptBuilder:
    """Renders samples for one tokenizer; ``chat`` uses its chat template where it has one."""

    def __init__(self, tokenizer: Any, chat: bool = True) -> None:
        self.tokenizer = tokenizer
        self.chat = chat and getattr(tokenizer, "chat_template", None) is not None

    @property
    def tokenizer_id(self) -> str:
        """Hash of the tokenizer's content and of the chat template in use."""
        return self._identity

    @cached_property
    def template_hash(self) -> str:
        """Hash of the chat template in use; empty for base models."""
        if not self.chat:
            return ""
        return hashlib.sha256(str(self.tokenizer.chat_template).encode()).hexdigest()[:16]

    @cached_property
    def _identity(self) -> str:
        backend = getattr(self.tokenizer, "backend_tokenizer", None)
        if backend is not None:
            content = backend.to_str()
        else:
            content = repr(sorted(self.tokenizer.get_vocab().items()))
        template = self.tokenizer.chat_template if self.chat else ""
        return hashlib.sha256(f"{content}\0{template}".encode()).hexdigest()[:16]

    def count(self, text: str) -> int:
        """Tokens of ``text`` without special tokens."""
        backend = getattr(self.tokenizer, "backend_tokenizer", None)
        if backend is None:
            return len(self._tokens(text))
        backend.no_truncation()
        return len(backend.encode_batch_fast([text], add_special_tokens=False)[0])

    def wrap(self, user_text: str) -> str:
        """``user_text`` as one user turn, without BOS (unchanged for base models)."""
        if not self.chat:
            return user_text
        turn = [{"role": "user", "content": user_text}]
        text = self.tokenizer.apply_chat_template(turn, tokenize=False, add_generation_prompt=True)
        return text.removeprefix(self.tokenizer.bos_token or "")

    def encode(self, sample: Sample, *, max_prompt_tokens: int | None = None) -> EncodedPrompt:
        """Ids of a sample's prompt: BOS once, template, answer prefix.

        ``meta["truncate"] = {"side": "middle", "tokens": n}`` cuts the prompt. Without it a prompt
        over ``max_prompt_tokens`` raises ``PromptTooLong``. ``meta["chat"] = False`` switches the
        chat template off. ``meta["preamble"]`` is text before the wrapped user turn (cwe's one-shot
        example).
        """
        user, truncated = self._truncate(sample)
        use_chat = sample.meta.get("chat", True)
        text = (self.wrap(user) if use_chat else user) + sample.answer_prefix
        text = sample.meta.get("preamble", "") + text
        ids = self._tokens(text)
        if self.tokenizer.bos_token_id is not None and self._adds_bos:
            ids = [self.tokenizer.bos_token_id, *ids]
        if max_prompt_tokens is not None and len(ids) > max_prompt_tokens:
            raise PromptTooLong(
                f"{sample.id}: the prompt has {len(ids)} tokens but the model takes "
                f"{max_prompt_tokens} beside {sample.max_new_tokens} new ones"
            )
        digest = hashlib.sha256(text.encode()).hexdigest()[:16]
        tail = sample.question + sample.answer_prefix
        if sample.question in text:  # truncation decodes ids, which may change the spelling
            tail = text[text.rindex(sample.question) :]
        context = max(1, len(ids) - self.count(tail))
        return EncodedPrompt(ids=ids, context_tokens=context, text_hash=digest, truncated=truncated)

    def follow_up(self, sample: Sample) -> list[int]:
        """Ids of a further question after an answer: end of turn, question, answer prefix."""
        text = sample.question
        if self.chat and sample.meta.get("chat", True):
            text = self._next_turn(text)
        elif not text[:1].isspace():
            text = "\n" + text
        return self._tokens(text + sample.answer_prefix)

    def _next_turn(self, user_text: str) -> str:
        """What the chat template puts between an answer and the next one."""
        mark = "[[answer]]"
        roles = ("user", "user"), ("assistant", mark), ("user", user_text)
        turns = [{"role": role, "content": content} for role, content in roles]
        text = self.tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
        return text.partition(mark)[2]

    def trim_answer(self, text: str, stop: tuple[str, ...]) -> tuple[str, bool]:
        """(``text`` up to the first stop string, whether there was one)."""
        ends = [text.index(mark) for mark in stop if mark in text]
        return (text[: min(ends)], True) if ends else (text, False)

    def stopper(self, stop: tuple[str, ...]) -> Callable[[list[int]], bool] | None:
        """A test whether the ids of an answer hold a stop string; None without stop strings."""
        if not stop:
            return None
        return lambda ids: any(mark in self.tokenizer.decode(ids) for mark in stop)

    @cached_property
    def _adds_bos(self) -> bool:
        """Whether the tokenizer itself puts BOS first, as in the model's training."""
        return self.tokenizer("a").input_ids[:1] == [self.tokenizer.bos_token_id]

    def _tokens(self, text: str) -> list[int]:
        return self.tokenizer(text, add_special_tokens=False).input_ids

    def _truncate(self, sample: Sample) -> tuple[str, bool]:
        """Middle truncation of the raw prompt (LongBench): keeps the first and the last ids.

        The halves are decoded apart, or together (``joint``, LongBench v2).
        """
        rule = sample.meta.get("truncate")
        if not rule:
            return sample.user_text, False
        ids = self.tokenizer(sample.user_text).input_ids
        limit = int(rule["tokens"])
        if len(ids) <= limit:
            return sample.user_text, False
        half = limit // 2
        parts = [ids[:half], ids[-half:]]
        if rule.get("joint"):
            parts = [parts[0] + ids[-limit // 2 :]]
        decode = self.tokenizer.decode
        return "".join(decode(part, skip_special_tokens=True) for part in parts), True
