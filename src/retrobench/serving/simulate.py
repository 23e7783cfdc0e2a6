"""Continuous batching as a discrete-event simulation: a queue, one engine, a memory.

First come, first served. A request is admitted where a slot is free and its memory fits, its
prompt is read (whole, while the others wait, or in chunks beside their steps), and each later step
gives it a token. Steps between two changes of the batch are one event: their durations run linearly
from the first to the last, which is exact where a step's cost is affine in its tokens.
"""

import heapq
import itertools
from bisect import bisect_left
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence

import simpy

from retrobench.serving.costs import Memory, StepCost
from retrobench.serving.pools import Pools
from retrobench.serving.requests import Request
from retrobench.serving.served import Policy, Served, SimulatedRun

GROWTH = 10  # steps of one event lengthen the mean context by no more than 1/GROWTH
EARLY = 8  # memory grows up to 1/EARLY of a block early, so that many requests share an event


class Simulation:
    """One engine that serves requests until none is left."""

    def __init__(self, cost: StepCost, memory: Memory, policy: Policy) -> None:
        self.cost, self.policy = cost, policy
        self.env = simpy.Environment()
        self.waiting: deque[Served] = deque()
        self.running: dict[int, Served] = {}  # by order of admission
        self.due: list[tuple[int, int]] = []  # (step at which something happens, number)
        self.numbers = itertools.count()
        self.pools = Pools(memory, policy.block_tokens)
        self.grid = max(1, policy.block_tokens // EARLY)  # memory grows at steps that it divides
        self.tokens = 0  # context of all that run
        self.step = 0
        self.last: list[tuple[float, int]] = []  # (time of last token, requests), of all that run
        self.arrived = self.env.event()
        self.next_s = float("inf")  # when the next request arrives, unless clients ask
        self.open = 0  # requests that are not finished
        self.outcome = SimulatedRun()
        self.enough: Callable[[Served], bool] = lambda served: False

    def run(
        self, requests: Sequence[Request], enough: Callable[[Served], bool] | None = None
    ) -> SimulatedRun:
        """Serve all requests; or until one is finished of which ``enough`` says so."""
        self.open, self.enough = len(requests), enough or self.enough
        if self.policy.clients:
            waiting = iter(requests)
            for _ in range(self.policy.clients):
                self.env.process(self._client(waiting))
        else:
            self.env.process(self._source(requests))
        self.env.run(self.env.process(self._engine()))
        self.outcome.steps, self.outcome.peak = self.step, self.pools.peak
        return self.outcome

    # -- who asks

    def _source(self, requests: Sequence[Request]) -> Generator[simpy.Event, object, None]:
        for request in requests:
            if request.arrival_s > self.env.now:
                self.next_s = request.arrival_s
                yield self.env.timeout(request.arrival_s - self.env.now)
            self._submit(request, request.arrival_s)
        self.next_s = float("inf")

    def _client(self, requests: Iterator[Request]) -> Generator[simpy.Event, object, None]:
        for request in requests:
            served = self._submit(request, self.env.now)
            served.done = self.env.event()
            yield served.done

    def _submit(self, request: Request, arrival_s: float) -> Served:
        served = Served(request, arrival_s)
        self.outcome.served.append(served)
        self.waiting.append(served)
        if not self.arrived.triggered:
            self.arrived.succeed()
        return served

    # -- the engine

    def _engine(self) -> Generator[simpy.Event, object, None]:
        while self.open:
            self.outcome.events += 1
            if self.policy.clients:  # who has just been answered asks before the next step begins
                yield self.env.timeout(0)
            served = self._admit()
            if served is not None:
                yield from self._prefill(served)
            elif self.running:
                yield from self._decode()
            elif self.open and not self.waiting:
                yield self._next_arrival()
            elif self.open:
                raise RuntimeError("memory is held by nobody: nothing runs, nothing can start")
        self.outcome.duration_s = self.env.now

    def _next_arrival(self) -> simpy.Event:
        if self.arrived.triggered:
            self.arrived = self.env.event()
        return self.arrived

    def _admit(self) -> Served | None:
        """The next request of the queue, with its memory taken; None if it must wait."""
        while self.waiting and len(self.running) < self.policy.max_batch:
            served = self.waiting[0]
            whole = self.pools.need_whole(served)
            if not self.pools.ever_fits(whole):
                served.rejected = True
                self._close(self.waiting.popleft())
                continue
            # its tokens, the one that reading them gives, and the one of the step after
            need = whole if self.policy.reserve else self.pools.need(served, served.to_read + 2)
            if not self.pools.fits(need):
                return None
            self.pools.take(served, need)
            return self.waiting.popleft()
        return None

    def _prefill(self, served: Served) -> Generator[simpy.Event, object, None]:
        served.read = 0
        if not self.policy.chunked:
            seconds = self.cost.step_s(0, 0.0, served.to_read, 0)
            self.outcome.busy_s += seconds
            yield self.env.timeout(seconds)
        while self.policy.chunked and served.read < served.to_read:
            batch, left = len(self.running), served.to_read - served.read
            chunk = self.cost.chunk_tokens(batch, self.tokens, left, served.read)
            seconds = self.cost.step_s(batch, self.tokens, chunk, served.read)
            self.outcome.busy_s += seconds
            yield self.env.timeout(seconds)
            served.read += chunk
            if batch:
                self._stepped(1, seconds, seconds)
        self._join(served)

    def _join(self, served: Served) -> None:
        """Its prompt is read, which gives a token."""
        now = self.env.now
        if served.made:
            self.outcome.gaps.append((now - served.last_s, 1))
        else:
            served.first_s = now
        served.made += 1
        if served.made == served.request.output_tokens:
            self.pools.give(served)
            self._finish(served)
            return
        number = next(self.numbers)
        self.running[number] = served
        served.joined_step = self.step - served.made
        self.tokens += served.to_read
        self.last.append((now, 1))
        self.outcome.peak_batch = max(self.outcome.peak_batch, len(self.running))
        self._plan(number, served, served.to_read + 1)

    def _decode(self) -> Generator[simpy.Event, object, None]:
        """Steps until something is due, or until a request arrives that can be admitted."""
        batch = len(self.running)
        steps = min(self.due[0][0] - self.step, 1 + self.tokens // (batch * GROWTH))
        first = self.cost.step_s(batch, self.tokens)
        final = self.cost.step_s(batch, self.tokens + (steps - 1) * batch) if steps > 1 else first
        taken, begun = steps, self.env.now
        if batch < self.policy.max_batch and not self.waiting:
            until = self.next_s - begun
            if until < _elapsed(steps, steps, first, final):
                taken = _steps_within(until, steps, first, final)
        seconds = _elapsed(taken, steps, first, final)
        yield self.env.timeout(seconds)
        self.outcome.busy_s += seconds
        self._stepped(taken, first, first + (final - first) * (taken - 1) / max(1, steps - 1))

    def _stepped(self, steps: int, first: float, final: float) -> None:
        """All that run have got a token in each of ``steps`` steps that end now."""
        batch, now = len(self.running), self.env.now
        first_end = now - (_elapsed(steps, steps, first, final) - first)
        self.outcome.gaps += [(first_end - at, count) for at, count in self.last]
        if steps > 1:
            self.outcome.gaps.append(((now - first_end) / (steps - 1), batch * (steps - 1)))
        self.last = [(now, batch)]
        self.step += steps
        self.tokens += steps * batch
        grow = []
        while self.due and self.due[0][0] <= self.step:
            due, number = heapq.heappop(self.due)
            served = self.running.get(number)
            if served is None or served.due_step != due:  # it was sent back meanwhile
                continue
            served.made = self.step - served.joined_step
            if served.made == served.request.output_tokens:
                self._leave(number, served)
                self._finish(served)
            else:
                grow.append(number)
        for number in grow:  # once all that ended have given their memory back
            if number in self.running:
                self._grow(number, self.running[number])

    def _grow(self, number: int, served: Served) -> None:
        """Its next block of memory; the newest requests make room."""
        room = served.to_read + self.grid
        need = self.pools.need(served, room)
        while not self.pools.fits(need, instead_of=served.held):
            newest = next(reversed(self.running))
            self._preempt(newest, self.running[newest])
            if newest == number:
                return
        self.pools.take(served, need)
        self._plan(number, served, room)

    def _preempt(self, number: int, served: Served) -> None:
        served.made = self.step - served.joined_step
        served.preemptions += 1
        served.last_s = self.env.now
        self._leave(number, served)
        self.waiting.appendleft(served)

    def _leave(self, number: int, served: Served) -> None:
        del self.running[number]
        self.tokens -= served.to_read
        self.pools.give(served)
        now, count = self.last[-1]  # all that run have just got a token
        self.last[-1] = (now, count - 1)

    def _finish(self, served: Served) -> None:
        served.end_s = self.env.now
        self._close(served)
        if self.enough(served):
            self.open = 0

    def _close(self, served: Served) -> None:
        self.open -= 1
        if served.done is not None:
            served.done.succeed()

    def _plan(self, number: int, served: Served, room: int) -> None:
        """Note the step at which it ends, or needs more memory than for ``room`` tokens."""
        due = self.step + served.request.output_tokens - served.made
        if not self.policy.reserve:
            block = self.policy.block_tokens
            full = self.step + -(-room // block) * block - served.to_read
            due = min(due, max(full - full % self.grid, self.step + 1))
        served.due_step = due
        heapq.heappush(self.due, (due, number))


def _elapsed(taken: int, steps: int, first: float, final: float) -> float:
    """Seconds of the first ``taken`` of ``steps`` steps, from ``first`` to ``final`` each."""
    slope = (final - first) / (steps - 1) if steps > 1 else 0.0
    return taken * first + slope * taken * (taken - 1) / 2


def _steps_within(seconds: float, steps: int, first: float, final: float) -> int:
    """The fewest steps that take at least ``seconds``; at least one."""
    fewer = range(1, steps)
    return 1 + bisect_left(fewer, seconds, key=lambda n: _elapsed(n, steps, first, final))
