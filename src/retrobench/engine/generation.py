"""How answers are decoded, when they end, and what they took."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from retrobench.core.shapes import Footprint

Stop = Callable[[list[int]], bool]  # whether the tokens of an answer end it


@dataclass(frozen=True, slots=True, kw_only=True)
class Decoding:
    """How tokens are chosen (``temperature`` 0 is greedy), and how many end an answer.

    The host looks for the end of an answer every ``check_every`` steps; tokens beyond it are cut.
    """

    max_new_tokens: int
    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0  # 0: all tokens
    seed: int = 0
    check_every: int = 1


@dataclass(slots=True, kw_only=True)
class Generation:
    """What a session produced, row by row, and what it took (seconds, bytes)."""

    token_ids: list[list[int]] = field(default_factory=list)
    stop_reasons: list[str] = field(default_factory=list)
    prefill_s: float | None = 0.0  # None: a later turn of a conversation
    build_s: float | None = 0.0
    decode_s: float = 0.0
    decode_steps: int = 0
    footprint: Footprint = field(default_factory=Footprint)
    method_stats: dict[str, Any] = field(default_factory=dict)

    def pending(self) -> list[int]:
        """Tokens of the answer (batch 1) that the model has not seen yet: the last, unless eos."""
        return [] if self.stop_reasons[0] == "eos" else self.token_ids[0][-1:]


class Answers:
    """Answers as the host sees them: it takes their tokens from the device now and then.

    Fills ``result``; tokens beyond an answer's end are not kept.
    """

    def __init__(
        self,
        result: Generation,
        batch: int,
        decoding: Decoding,
        stop_ids: frozenset[int],
        stop: Stop | None,
    ) -> None:
        self.result, self.decoding = result, decoding
        self.stop_ids, self.stop = stop_ids, stop
        result.token_ids = [[] for _ in range(batch)]
        result.stop_reasons = ["length"] * batch
        self.active = set(range(batch))
        self.unread: list[Tensor] = []  # tokens that the host has not looked at

    def ended_by(self, token_B1: Tensor, last: bool) -> bool:
        """Take the newest token of each row; whether no more are needed."""
        self.unread.append(token_B1)
        if last or len(self.unread) == self.decoding.check_every:
            for tokens in torch.cat(self.unread, 1).T.tolist():
                for row in sorted(self.active):
                    self._take(row, tokens[row])
            self.unread.clear()
        return last or not self.active

    def _take(self, row: int, token: int) -> None:
        if token in self.stop_ids:
            self.active.discard(row)
            self.result.stop_reasons[row] = "eos"
            return
        self.result.token_ids[row].append(token)
        if self.stop is not None and self.stop(self.result.token_ids[row]):
            self.active.discard(row)
            self.result.stop_reasons[row] = "stop_string"
