"""The loop of an answer: choose a token, decode, look for the end now and then."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol

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


class Chooser(Protocol):
    """Chooses next tokens."""

    def choose(self, logits_BV: Tensor, decoding: Decoding, generator: torch.Generator) -> Tensor:
        """Next token of each row, ``B1``."""
        ...


class Decoder(Protocol):
    """What the loop asks of a session."""

    logits: Tensor

    @property
    def executor(self) -> Chooser:
        """Who runs its steps."""
        ...

    def step(self, token_B1: Tensor) -> Tensor:
        """One decode step."""
        ...


class AnswerLoop:
    """The loop of one answer per row: choose, decode, look for the end now and then."""

    def __init__(
        self,
        session: Decoder,
        decoding: Decoding,
        stop_ids: frozenset[int],
        stop: Stop | None,
        result: Generation,
    ) -> None:
        self.session, self.decoding, self.result = session, decoding, result
        self.stop_ids, self.stop = stop_ids, stop
        batch = session.logits.shape[0]
        result.token_ids = [[] for _ in range(batch)]
        result.stop_reasons = ["length"] * batch
        self.active = set(range(batch))
        self.unread: list[Tensor] = []  # tokens that the host has not looked at

    def run(self) -> None:
        """Fill ``result``; steps taken beyond the end are counted, their tokens are not kept."""
        session, decoding = self.session, self.decoding
        generator = torch.Generator(session.logits.device).manual_seed(decoding.seed)
        for index in range(decoding.max_new_tokens):
            token_B1 = session.executor.choose(session.logits, decoding, generator)
            self.unread.append(token_B1)
            last = index + 1 == decoding.max_new_tokens
            if last or len(self.unread) == decoding.check_every:
                self._read()
            if last or not self.active:
                return
            session.step(token_B1)
            self.result.decode_steps += 1

    def _read(self) -> None:
        for tokens in torch.cat(self.unread, 1).T.tolist():
            for row in sorted(self.active):
                self._take(row, tokens[row])
        self.unread.clear()

    def _take(self, row: int, token: int) -> None:
        if token in self.stop_ids:
            self.active.discard(row)
            self.result.stop_reasons[row] = "eos"
            return
        self.result.token_ids[row].append(token)
        if self.stop is not None and self.stop(self.result.token_ids[row]):
            self.active.discard(row)
            self.result.stop_reasons[row] = "stop_string"
