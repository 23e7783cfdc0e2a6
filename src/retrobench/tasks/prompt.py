"""From sample to token ids: the only place for chat template, truncation and stop strings."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from retrobench.core.cell import text_hash
from retrobench.core.task import Sample
from retrobench.tasks.chat import (
    DATE,
    MARKS,
    PROBE,
    ChatTemplate,
    transcript,
    without_thinking,
)
from retrobench.tasks.spelling import Spelling

TAIL_CHARACTERS = 400  # of a prompt, kept for the reader of its row


class PromptTooLong(ValueError):
    """The prompt does not fit the model's context. It is never cut silently."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EncodedPrompt:
    """Token ids of a prompt; ``context_tokens`` of them come before the question."""

    ids: list[int]
    context_tokens: int
    text_hash: str
    tail: str = ""  # the last characters of the text
    truncated: bool = False
    warning: str = ""

    @property
    def num_tokens(self) -> int:
        """Length of the prompt, special tokens included."""
        return len(self.ids)


class PromptBuilder:
    """Renders samples for one tokenizer; ``chat`` uses its chat template where it has one.

    ``chat_date`` is the day that a template shows (YYYY-MM-DD). ``thinking``: ``off`` asks the
    template for no think block, ``strip`` takes them out of answers.
    """

    def __init__(
        self, tokenizer: Any, *, chat: bool = True, chat_date: str = DATE, thinking: str = "auto"
    ) -> None:
        self.tokenizer, self.spelling = tokenizer, Spelling(tokenizer)
        self.chat = chat and getattr(tokenizer, "chat_template", None) is not None
        self.chat_date, self.thinking = chat_date, thinking
        self.template = ChatTemplate(tokenizer, chat_date, thinking if self.chat else "auto")

    @cached_property
    def identity(self) -> dict[str, str]:
        """What the cell key says of date and thinking: nothing where they change no prompt."""
        dated = self.chat and self.template.shows_date
        return {
            **({"chat_date": self.chat_date} if dated else {}),
            **({"thinking": self.thinking} if self.chat and self.thinking != "auto" else {}),
        }

    @property
    def tokenizer_id(self) -> str:
        """Hash of the tokenizer's content and of the chat template in use."""
        return self._tokenizer_id

    @cached_property
    def template_hash(self) -> str:
        """Hash of the chat template in use; empty for base models."""
        if not self.chat:
            return ""
        return text_hash(str(self.tokenizer.chat_template))

    @cached_property
    def _tokenizer_id(self) -> str:
        backend = getattr(self.tokenizer, "backend_tokenizer", None)
        if backend is not None:
            content = backend.to_str()
        else:
            content = repr(sorted(self.tokenizer.get_vocab().items()))
        template = self.tokenizer.chat_template if self.chat else ""
        rules = "\0rules 2" if self._is_respelled else ""
        options = f"\0{self.identity}" if self.identity else ""
        text = f"{content}\0{template}{rules}{options}"
        return text_hash(text)

    @cached_property
    def _is_respelled(self) -> bool:
        """Whether prompts start otherwise than they once did, so that their cells need new keys.

        Once a BOS at the start of a rendered chat was cut off, and put back only if the tokenizer
        adds one itself; of what tokenizers put before a text, only BOS was known.
        """
        bos = self.tokenizer.bos_token_id
        added = [bos] if bos is not None and self.tokenizer("a").input_ids[:1] == [bos] else []
        if self.start_ids != added:
            return True
        if not self.chat:
            return False
        text = self.template.render(PROBE)
        cut = text.removeprefix(self.tokenizer.bos_token or "")
        return self.wrap("a") != cut or added + self.tokens(cut) != self.tokens(text)

    def count(self, text: str) -> int:
        """Tokens of ``text`` without special tokens."""
        return self.spelling.count(text)

    def wrap(self, user_text: str, history: Sequence[tuple[str, str]] = ()) -> str:
        """``user_text`` as a user turn after a conversation (unchanged for base models).

        A BOS that stands once, before the whole conversation, is left out: ``encode`` puts it
        before the preamble.
        """
        if not self.chat:
            return user_text
        turns = [*history, ("user", user_text)]
        return self.template.conversation(turns).removeprefix(self.template.bos)

    def encode(self, sample: Sample, *, max_prompt_tokens: int | None = None) -> EncodedPrompt:
        """Ids of a sample's prompt: template, answer prefix, and BOS as the model was trained.

        In a chat the template alone decides about BOS. Other text gets what the tokenizer puts
        before it. ``meta["truncate"] = {"side": "middle", "tokens": n}`` cuts the prompt. Without
        it a prompt over ``max_prompt_tokens`` raises ``PromptTooLong``. ``meta["chat"] = False``
        switches the chat template off. ``meta["preamble"]`` is text before the wrapped user turn
        (cwe's one-shot example).
        """
        user, truncated = self._truncate(sample)
        use_chat = self.chat and sample.meta.get("chat", True)
        answer_prefix, warning = self._answer_prefix(sample)
        text = self._turns(user, sample.history, use_chat) + answer_prefix
        text = sample.meta.get("preamble", "") + text
        bos = self.template.bos if use_chat else ""
        start = [] if use_chat else self.start_ids
        place = text.rfind(sample.question)
        spelled, before = self.spelling.split(bos + text, len(bos) + place)
        ids = [*start, *spelled]
        digest = text_hash(text)
        context = len(start) + before
        if place < 0:  # truncation decodes ids, which may change the spelling
            context = len(ids) - self.count(sample.question + answer_prefix)
        if (shorter := _cut_ids(ids, context, sample.meta.get("truncate"))) is not None:
            (ids, context), truncated = shorter, True
        if max_prompt_tokens is not None and len(ids) > max_prompt_tokens:
            raise PromptTooLong(
                f"{sample.id}: the prompt has {len(ids)} tokens but the model takes "
                f"{max_prompt_tokens} beside {sample.max_new_tokens} new ones"
            )
        return EncodedPrompt(
            ids=ids,
            context_tokens=max(1, context),
            text_hash=digest,
            tail=text[-TAIL_CHARACTERS:],
            truncated=truncated,
            warning=warning,
        )

    def _turns(self, user: str, history: Sequence[tuple[str, str]], use_chat: bool) -> str:
        """The user's turn and what came before it, as text."""
        if use_chat:
            return self.wrap(user, history)
        return transcript([*history, ("user", user)]) if history else user

    def _answer_prefix(self, sample: Sample) -> tuple[str, str]:
        """(The sample's answer prefix as far as the prompt takes it, a warning or nothing)."""
        mark = self._open_mark(sample.meta.get("chat", True))
        if not mark:
            return sample.answer_prefix, ""
        if self.thinking == "strip":  # the answer comes after the thought, and so would its start
            return "", f"the answer prefix is left out, since the chat template opens {mark}"
        return sample.answer_prefix, (
            f"the prompt ends inside an open {mark} block, so the answer starts as a thought; use "
            "model.thinking=off or strip"
        )

    def _open_mark(self, chat: bool) -> str:
        """The mark of the think block in which a prompt ends."""
        return self.template.open_mark if self.chat and chat else ""

    def follow_up(self, sample: Sample, gold: str = "") -> list[int]:
        """Ids of a further question after an answer: end of turn, question, answer prefix.

        With ``gold``, the answer that the model did not give, they begin with it.
        """
        text = sample.question
        if self.chat and sample.meta.get("chat", True):
            text = self._next_turn(text)
        elif not text[:1].isspace():
            text = "\n" + text
        text += self._answer_prefix(sample)[0]
        if gold:
            return self.tokens(gold + text)
        # As it is spelled after an answer: some tokenizers put a space before their first word.
        answer, ids = self.tokens("a"), self.tokens("a" + text)
        return ids[len(answer) :] if ids[: len(answer)] == answer else self.tokens(text)

    def _next_turn(self, user_text: str) -> str:
        """What the chat template puts between an answer and the next one."""
        mark = "[[answer]]"
        roles = ("user", "user"), ("assistant", mark), ("user", user_text)
        turns = [{"role": role, "content": content} for role, content in roles]
        _, found, text = self.template.render(turns).partition(mark)
        if not found:
            raise ValueError(
                "the chat template leaves out the answers of a conversation: use another one "
                "(model.chat_template), or model.chat=false"
            )
        return text

    def answer(self, ids: Sequence[int], chat: bool = True) -> str:
        """Text of an answer's ids; with ``thinking=strip`` what is left without think blocks.

        ``chat``: whether the prompt was wrapped in the chat template.
        """
        if self.thinking != "strip":
            return self.tokenizer.decode(ids, skip_special_tokens=True)
        kept = [token for token in ids if token not in self._silent_ids]
        return without_thinking(self._open_mark(chat) + self.tokenizer.decode(kept))

    @cached_property
    def _silent_ids(self) -> frozenset[int]:
        """Special tokens except the marks of think blocks, which some tokenizers count as such."""
        marks = {mark for pair in MARKS for mark in pair}
        known = getattr(self.tokenizer, "added_tokens_decoder", {}).items()
        return frozenset(i for i, token in known if token.special and token.content not in marks)

    def trim_answer(self, text: str, stop: tuple[str, ...]) -> tuple[str, bool]:
        """(``text`` up to the first stop string, whether there was one)."""
        ends = [text.index(mark) for mark in stop if mark in text]
        return (text[: min(ends)], True) if ends else (text, False)

    def stopper(self, sample: Sample) -> Callable[[list[int]], bool] | None:
        """A test whether the ids of an answer hold a stop string; None without stop strings."""
        if not sample.stop:
            return None
        chat = sample.meta.get("chat", True)
        return lambda ids: any(mark in self.answer(ids, chat) for mark in sample.stop)

    @cached_property
    def start_ids(self) -> list[int]:
        """What the tokenizer itself puts before a text that is no chat (BOS, where it adds one).

        What it puts after a text (EOS, SEP) would end the prompt and is left out.
        """
        text, whole = self.tokens("a"), self.tokenizer("a").input_ids
        starts = range(len(whole) - len(text) + 1)
        return next((whole[:i] for i in starts if whole[i : i + len(text)] == text), [])

    def tokens(self, text: str) -> list[int]:
        """Ids of ``text`` alone, without special tokens around it."""
        return self.spelling.ids(text)

    def _truncate(self, sample: Sample) -> tuple[str, bool]:
        """Middle truncation of the raw prompt (LongBench): keeps the first and the last ids.

        The halves are decoded apart, or together (``joint``, LongBench v2, whose second half has
        the odd id; with ``even`` the halves are equal, as in InfiniteBench).
        """
        rule = sample.meta.get("truncate")
        if not rule or "of" in rule:  # the ids of the whole prompt are cut
            return sample.user_text, False
        ids = self.spelling.whole(sample.user_text)
        limit = int(rule["tokens"])
        if len(ids) <= limit:
            return sample.user_text, False
        half = limit // 2
        parts = [ids[:half], ids[-half:]]
        if rule.get("joint"):
            parts = [parts[0] + (ids[-half:] if rule.get("even") else ids[-limit // 2 :])]
        decode = self.tokenizer.decode
        return "".join(decode(part, skip_special_tokens=True) for part in parts), True


def _cut_ids(
    ids: list[int], context: int, rule: Mapping[str, Any] | None
) -> tuple[list[int], int] | None:
    """A prompt and its context in equal halves of what the rule keeps; None if it is short enough.

    ``of``: the whole rendered ``prompt``, or its ``context`` alone (as SCBench's script does it).
    """
    if not rule or "of" not in rule:
        return None
    part, rest = (ids, []) if rule["of"] == "prompt" else (ids[:context], ids[context:])
    if len(part) <= rule["tokens"]:
        return None
    half = rule["tokens"] // 2
    kept = [*part[:half], *part[-half:], *rest]
    return kept, len(kept) - (len(ids) - context)
