"""Text to ids, without special tokens around it, as fast as the tokenizer can."""

from bisect import bisect_right
from functools import cached_property
from typing import Any

_PROBE = "Two  words, \n\n naïve 1234 <s> 東京"


class Spelling:
    """A tokenizer's ids of plain text.

    Its backend in Rust is asked directly where it gives the same ids: the tokenizer itself also
    fills lists that nobody reads, which takes as long as the ids.
    """

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer

    def count(self, text: str) -> int:
        """Tokens of ``text``."""
        if (backend := self._backend()) is None:
            return len(self.ids(text))
        return len(backend.encode_batch_fast([text], add_special_tokens=False)[0])

    def ids(self, text: str) -> list[int]:
        """Ids of ``text``."""
        if (backend := self._backend()) is None:
            return self.tokenizer(text, add_special_tokens=False).input_ids
        return backend.encode_batch_fast([text], add_special_tokens=False)[0].ids

    def split(self, text: str, border: int) -> tuple[list[int], int]:
        """Ids of ``text``, and how many of them end at character ``border`` or before it."""
        if (backend := self._backend()) is None:
            ids = self.ids(text)
            return ids, len(ids) - self.count(text[border:])
        found = backend.encode(text, add_special_tokens=False)
        before = found.char_to_token(border)  # the first token that ends behind it
        if before is None:  # no token has this character
            before = bisect_right(found.offsets, border, key=lambda span: span[1])
        return found.ids, before

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
        asked = self.tokenizer(_PROBE, add_special_tokens=False).input_ids
        return backend if backend.encode(_PROBE, add_special_tokens=False).ids == asked else None
