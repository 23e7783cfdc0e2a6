"""How requests are scheduled, and what became of them."""

from dataclasses import dataclass, field

import simpy

from retrobench.serving.costs import Bytes
from retrobench.serving.requests import Request


@dataclass(frozen=True, slots=True, kw_only=True)
class Policy:
    """How requests are scheduled.

    ``chunked``: prompts are read in pieces. ``reserve``: memory for the whole answer is taken at
    admission; else for ``block_tokens`` at a time, and the newest request is sent back to the queue
    (to be read again) where memory ends. ``clients``: so many ask again as soon as they are
    answered, and arrival times do not matter; 0: requests arrive by their times.
    """

    max_batch: int
    chunked: bool = False
    reserve: bool = False
    block_tokens: int = 256
    clients: int = 0


@dataclass(slots=True, eq=False)
class Served:
    """A request on its way; times are NaN until they are known."""

    request: Request
    arrival_s: float
    first_s: float = float("nan")
    end_s: float = float("nan")
    rejected: bool = False
    preemptions: int = 0
    made: int = 0  # answer tokens
    read: int = 0  # tokens of prompt (and answer before a preemption) that are in memory
    held: Bytes = ()
    due_step: int = 0
    joined_step: int = 0
    last_s: float = 0.0  # of its last token, where it waits to be read again
    done: simpy.Event | None = None

    @property
    def to_read(self) -> int:
        """Tokens to be read before it goes on."""
        return self.request.input_tokens + self.made


@dataclass(slots=True)
class SimulatedRun:
    """What became of all requests. ``gaps``: (seconds between two tokens, how many such)."""

    served: list[Served] = field(default_factory=list)
    gaps: list[tuple[float, int]] = field(default_factory=list)
    busy_s: float = 0.0
    duration_s: float = 0.0
    steps: int = 0
    peak: list[float] = field(default_factory=list)
    peak_batch: int = 0
    events: int = 0
