"""The replay against queueing theory, and laws that hold whatever is asked of it."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from retrobench.serving.costs import Memory
from retrobench.serving.requests import Request, arrivals
from retrobench.serving.served import Policy
from retrobench.serving.simulate import Simulation
from retrobench.serving.summary import Objectives, percentiles, summarise, tpot_s, ttft_s


class Affine:
    """Seconds: a constant, per running request, per token of context, per token read."""

    max_batch = 1 << 30

    def __init__(self, fixed=0.0, each=0.0, context=0.0, read=0.0, chunk=64):
        self.fixed, self.each, self.context, self.read = fixed, each, context, read
        self.chunk, self.asked = chunk, 0.0

    def step_s(self, batch, tokens, chunk=0, done=0):
        decode = self.fixed + self.each * batch + self.context * tokens if batch else 0.0
        return decode + self.read * chunk

    def chunk_tokens(self, batch, tokens, left, done):
        return min(left, self.chunk)


ROOMY = Memory((float("inf"),), lambda prompt, total: (float(total),))
TOKENS = Memory((4096.0,), lambda prompt, total: (float(total),))


def served_by(requests, cost=None, memory=ROOMY, **policy):
    policy = {"max_batch": 8, "block_tokens": 16} | policy
    simulation = Simulation(cost or Affine(0.01, 0.002, 1e-5, 1e-4), memory, Policy(**policy))
    return simulation.run(requests), simulation


def single_server(services, rate, seed):
    """Requests of one token, whose prompt takes their service time: a queue with one server."""
    rng = np.random.default_rng(seed)
    times = arrivals(len(services), rate, 1.0, rng)
    return [Request(t, int(s), 1) for t, s in zip(times, services, strict=True)]


@pytest.mark.parametrize("load", [0.3, 0.7])
def test_waiting_times_of_m_m_1(load):
    rng = np.random.default_rng(7)
    services = np.maximum(1, rng.exponential(10_000, 25_000))
    outcome, _ = served_by(single_server(services, load, 8), Affine(read=1e-4), max_batch=1)
    waits = [ttft_s(s) - 1e-4 * s.request.input_tokens for s in outcome.served]
    assert np.mean(waits) == pytest.approx(load / (1 - load), rel=0.08)
    assert outcome.busy_s / outcome.duration_s == pytest.approx(load, rel=0.02)
    share = np.mean([ttft_s(s) > 2.0 for s in outcome.served])  # response times are exponential
    assert share == pytest.approx(np.exp(-2.0 * (1 - load)), abs=0.02)


@pytest.mark.parametrize("load", [0.3, 0.7])
def test_waiting_times_of_m_d_1(load):
    requests = single_server(np.full(25_000, 10_000), load, 9)
    outcome, _ = served_by(requests, Affine(read=1e-4), max_batch=1)
    waits = [ttft_s(s) - 1.0 for s in outcome.served]
    assert np.mean(waits) == pytest.approx(load / (2 * (1 - load)), rel=0.08)


def test_a_request_by_hand():
    """Two requests: the second is read while the first waits, then both share their steps."""
    cost = Affine(fixed=1.0, each=0.1, context=0.01, read=0.5)
    asked = [Request(0.0, 4, 4), Request(2.5, 2, 2)]
    outcome, _ = served_by(asked, cost)
    first, second = outcome.served
    read = 4 * 0.5  # until 2.0; then a step with 5 tokens of context, during which 2 arrives
    step = 1.0 + 0.1 + 0.05
    second_read = 2.0 + step + 2 * 0.5
    both = 1.0 + 0.2 + 0.01 * (6 + 3)
    last = 1.0 + 0.1 + 0.01 * 7
    assert first.first_s == pytest.approx(read)
    assert second.first_s == pytest.approx(second_read)
    assert second.end_s == pytest.approx(second_read + both)
    assert first.end_s == pytest.approx(second_read + both + last)
    assert tpot_s(first) == pytest.approx((first.end_s - 2.0) / 3)
    gaps = sorted(gap for gap, count in outcome.gaps for _ in range(count))
    assert gaps == pytest.approx(sorted([step, 1.0 + both, both, last]))


def test_an_arrival_is_read_after_the_step_in_progress():
    """And not after all the steps that are one event."""
    outcome, _ = served_by([Request(0.0, 1000, 90), Request(3.5, 10, 1)], Affine(fixed=1.0))
    first, second = outcome.served
    assert second.first_s == pytest.approx(4.0) and first.end_s == pytest.approx(89.0)


def test_chunks_by_hand():
    """A prompt of 3 in pieces of 2 beside a running request."""
    cost = Affine(fixed=1.0, each=0.0, context=0.0, read=0.25, chunk=2)
    outcome, _ = served_by([Request(0.0, 2, 9), Request(0.6, 3, 2)], cost, chunked=True)
    first, second = outcome.served
    assert first.first_s == pytest.approx(0.5)
    assert second.first_s == pytest.approx(0.5 + 1 + 1.5 + 1.25)  # its arrival ends the step
    assert second.end_s == pytest.approx(second.first_s + 1)
    assert first.end_s == pytest.approx(0.5 + 8 + 0.75)


requests_of = st.lists(
    st.tuples(st.floats(0, 5), st.integers(1, 900), st.integers(1, 900)), min_size=1, max_size=40
)


@settings(max_examples=150, deadline=None)
@given(requests_of, st.booleans(), st.booleans(), st.integers(0, 5), st.integers(1, 9))
def test_nothing_is_lost_and_memory_holds(asked, chunked, reserve, clients, slots):
    requests = [Request(*one) for one in sorted(asked)]
    policy = {"chunked": chunked, "reserve": reserve, "clients": clients, "max_batch": slots}
    memory = Memory((1024.0,), lambda prompt, total: (float(total),))
    outcome, simulation = served_by(requests, memory=memory, **policy)
    assert len(outcome.served) == len(requests)
    for served in outcome.served:
        whole = served.request.input_tokens + served.request.output_tokens
        assert served.rejected == (-(-whole // 16) * 16 > 1024)
        if not served.rejected:
            assert served.arrival_s < served.first_s <= served.end_s
            assert served.made == served.request.output_tokens
            assert reserve is False or served.preemptions == 0
    assert outcome.peak[0] <= 1024 and outcome.peak_batch <= slots
    # everything was given back, and every token but the first of each answer has its gap
    assert simulation.pools.used == [0.0] and simulation.tokens == 0 and not simulation.running
    made = sum(s.request.output_tokens - 1 for s in outcome.served if not s.rejected)
    assert sum(count for _, count in outcome.gaps) == made
    assert all(gap > 0 for gap, count in outcome.gaps if count)


@settings(max_examples=60, deadline=None)
@given(requests_of, st.booleans())
def test_work_is_conserved(asked, chunked):
    """The engine is idle only while nobody is there; its work is the sum of the steps."""
    requests = [Request(*one) for one in sorted(asked)]
    outcome, _ = served_by(requests, chunked=chunked, reserve=True)
    intervals = sorted((s.arrival_s, s.end_s) for s in outcome.served)
    present, until = 0.0, 0.0
    for begin, end in intervals:
        present += max(0.0, end - max(begin, until))
        until = max(until, end)
    assert outcome.busy_s == pytest.approx(present)
    read = 1e-4 * sum(s.request.input_tokens for s in outcome.served)
    contexts = sum(
        s.request.input_tokens * (n := s.request.output_tokens - 1) + n * (n + 1) / 2
        for s in outcome.served
    )
    tokens = sum(s.request.output_tokens - 1 for s in outcome.served)
    expected = read + 0.01 * outcome.steps + 0.002 * tokens + 1e-5 * contexts
    assert outcome.busy_s == pytest.approx(expected)


def test_steps_one_by_one_give_the_same(monkeypatch):
    """Many steps as one event against every step as its own."""
    rng = np.random.default_rng(3)
    times = arrivals(300, 2.0, 1.0, rng)
    requests = [Request(t, int(i), int(o)) for t, i, o in zip(
        times, rng.integers(1, 500, 300), rng.integers(1, 500, 300), strict=True
    )]  # fmt: skip
    together, _ = served_by(requests, memory=TOKENS)
    monkeypatch.setattr("retrobench.serving.simulate.GROWTH", 10**9)
    apart, _ = served_by(requests, memory=TOKENS)
    assert apart.events > 2 * together.events
    for one, other in zip(together.served, apart.served, strict=True):
        assert one.end_s == pytest.approx(other.end_s)
        assert one.preemptions == other.preemptions


def test_memory_that_ends_sends_the_newest_back(monkeypatch):
    monkeypatch.setattr("retrobench.serving.simulate.EARLY", 16)  # blocks of 16: when they are full
    memory = Memory((64.0,), lambda prompt, total: (float(total),))
    outcome, _ = served_by([Request(0, 16, 40), Request(0, 16, 40)], memory=memory)
    assert [s.preemptions for s in outcome.served] == [0, 1]
    assert outcome.peak == [64.0]
    # the second ends in the very step in which the first needs its memory: it is not sent back
    outcome, _ = served_by([Request(0, 16, 40), Request(0, 16, 16)], memory=memory)
    assert [s.preemptions for s in outcome.served] == [0, 0]


def test_clients_ask_again_when_they_are_answered():
    requests = [Request(0.0, 10, 5)] * 12
    outcome, _ = served_by(requests, clients=3)
    ends = sorted(s.end_s for s in outcome.served)
    assert outcome.peak_batch == 3 and len(ends) == 12
    assert sorted(s.arrival_s for s in outcome.served)[3:] == pytest.approx(ends[:9])


def test_a_client_asks_before_the_next_step_begins():
    """Its prompt is read at once: the others' step does not come first."""
    cost = Affine(fixed=1.0, read=0.25)
    asked = [Request(0.0, 4, 2), Request(0.0, 4, 9), Request(0.0, 4, 2)]
    outcome, _ = served_by(asked, cost, clients=2)
    first, second, third = outcome.served
    assert first.end_s == third.arrival_s == pytest.approx(2 * 1.0 + 1.0)
    assert third.first_s == pytest.approx(3.0 + 1.0) and third.end_s == pytest.approx(5.0)
    assert second.end_s == pytest.approx(2.0 + 8 * 1.0 + 1.0)


def test_summary_has_the_names_of_the_serving_benchmark():
    outcome, _ = served_by([Request(0.0, 10, 5), Request(0.0, 10, 1)])
    found = summarise(outcome, Objectives(ttft_s=10, tpot_s=10))
    for name in ("ttft", "tpot", "itl", "e2el"):
        for kind in ("mean", "median", "std", "p50", "p90", "p99"):
            assert found[f"{kind}_{name}_ms"] >= 0
    assert found["completed"] == 2 and found["total_output_tokens"] == 6
    assert found["request_goodput"] == found["request_throughput"]
    assert found["output_throughput"] == pytest.approx(6 / found["duration"])
    strict = summarise(outcome, Objectives(ttft_s=10, tpot_s=1e-9))
    assert strict["good_frac"] == 0.5  # the one without a second token


def test_percentiles_weigh():
    values, weights = np.array([3.0, 1.0, 2.0]), np.array([1, 98, 1])
    assert percentiles(values, weights) == {50: 1, 90: 1, 99: 2}
    assert percentiles(values, np.array([2, 97, 1])) == {50: 1, 90: 1, 99: 3}


def test_the_work_of_a_replay_grows_with_its_requests_and_not_with_their_tokens():
    memory = Memory((200_000.0,), lambda prompt, total: (float(total),))
    events = []
    for scale in (1, 10):
        rng = np.random.default_rng(0)
        times = arrivals(500, 20.0 / scale, 1.0, rng)
        sizes = scale * rng.integers(10, 1000, (500, 2))
        requests = [Request(t, *map(int, size)) for t, size in zip(times, sizes, strict=True)]
        cost = Affine(0.005, 1e-4, 1e-8, 1e-6)
        outcome, _ = served_by(requests, cost, memory, max_batch=256, block_tokens=256 * scale)
        events.append(outcome.events)
    assert max(events) < 12 * 500
