"""What a replay asks of a machine: how long steps take, and how much it can hold."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

Bytes = tuple[float, ...]  # by memory pool of the machine


class StepCost(Protocol):
    """Seconds of one step of a batch with ``tokens`` of context in total.

    A step gives every running request a token and reads ``chunk`` tokens of one more prompt, of
    which ``done`` have been read. ``batch`` is 0 where only a prompt is read.
    """

    @property
    def max_batch(self) -> int:
        """Requests in a step, at most."""
        ...

    def step_s(self, batch: int, tokens: float, chunk: int = 0, done: int = 0) -> float:
        """Seconds; 0 is allowed, less is not."""
        ...

    def chunk_tokens(self, batch: int, tokens: float, left: int, done: int) -> int:
        """How much of the prompt the next step should read, of ``left`` tokens that remain."""
        ...


@dataclass(frozen=True, slots=True)
class Memory:
    """Pools of a machine and what a request takes of each.

    ``need(prompt, total)``: bytes of a request whose ``prompt`` tokens were given and that holds
    ``total`` tokens. It never falls as ``total`` grows.
    """

    capacity: Bytes
    need: Callable[[int, int], Bytes]
