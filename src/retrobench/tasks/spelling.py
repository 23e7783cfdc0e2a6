"""Text to ids as fast as the tokenizer can: 128K tokens are counted, cut and encoded."""

from array import array
from bisect import bisect_right
from functools import cached_property, lru_cache
from typing import Any

_PROBE = "Two  words, \n\n naïve 1234 <s> 東京"
_RECENT = 8  # texts whose ids are kept: a prompt is counted, then encoded
_TAIL_CHARACTERS = 400  # looked at before a border
_MARGIN = 8  # tokens before a border that must be spelled alike


class Spelling:
    """A tokenizer's ids of plain text, without special tokens unless ``whole``.

    Its backend in Rust is asked directly where it gives the same ids: the tokenizer itself fills
    lists that nobody reads, and places of characters take longer than the ids.
    """

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer
        self._kept = lru_cache(maxsize=_RECENT)(self._encode)

    def count(self, text: str) -> int:
        """Tokens of ``text``."""
        return len(self._kept(text))

    def ids(self, text: str) -> list[int]:
        """Ids of ``text``."""
        return list(self._kept(text))

    def whole(self, text: str) -> list[int]:
        """Ids of ``text`` with what the tokenizer puts around it."""
        if self._plain_backend is None:
            return self.tokenizer(text).input_ids
        before, behind = self._around
        return [*before, *self._kept(text), *behind]

    def split(self, text: str, border: int) -> tuple[list[int], int]:
        """Ids of ``text``, and how many of them end at character ``border`` or before it."""
        ids = self.ids(text)
        if (backend := self._backend()) is None:
            return ids, len(ids) - self.count(text[border:])
        start = max(0, border - _TAIL_CHARACTERS)
        tail = backend.encode(text[start:], add_special_tokens=False)
        before = _ended(tail, border - start)
        behind = len(tail.ids) - before
        margin = min(before, _MARGIN)
        if start == 0 or (margin and ids[-behind - margin :] == tail.ids[before - margin :]):
            return ids, len(ids) - behind
        return ids, _ended(backend.encode(text, add_special_tokens=False), border)

    def _encode(self, text: str) -> array:
        if (backend := self._backend()) is None:
            return array("q", self.tokenizer(text, add_special_tokens=False).input_ids)
        return array("q", backend.encode_batch_fast([text], add_special_tokens=False)[0].ids)

    @cached_property
    def _around(self) -> tuple[list[int], list[int]]:
        """What the backend puts before and behind a text."""
        text, whole = self.ids(_PROBE), self._backend().encode(_PROBE).ids
        starts = range(len(whole) - len(text) + 1)
        start = next(i for i in starts if whole[i : i + len(text)] == text)
        return whole[:start], whole[start + len(text) :]

    def _backend(self) -> Any:
        if (backend := self._plain_backend) is not None:
            backend.no_truncation()
        return backend

    @cached_property
    def _plain_backend(self) -> Any:
        """None where the tokenizer does more than its backend."""
        backend = getattr(self.tokenizer, "backend_tokenizer", None)
        if backend is None:
            return None
        for special in (False, True):
            asked = self.tokenizer(_PROBE, add_special_tokens=special).input_ids
            if backend.encode(_PROBE, add_special_tokens=special).ids != asked:
                return None
        return backend


def _ended(found: Any, border: int) -> int:
    """Tokens that end at a character or before it."""
    before = found.char_to_token(border)  # the first token that ends behind it
    if before is not None:
        return before
    return bisect_right(found.offsets, border, key=lambda span: span[1])
