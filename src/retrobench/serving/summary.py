"""Latencies, rates and goodput of a replay, under the field names of ``vllm bench serve``."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from retrobench.serving.served import Served, SimulatedRun

PERCENTILES = (50, 90, 99)


@dataclass(frozen=True, slots=True, kw_only=True)
class Objectives:
    """What a good request stays below: time to first token, time per token after it."""

    ttft_s: float
    tpot_s: float

    def good(self, served: Served) -> bool:
        """Whether a request was served, and in time."""
        if served.rejected:
            return False
        return ttft_s(served) <= self.ttft_s and (tpot_s(served) or 0.0) <= self.tpot_s


def ttft_s(served: Served) -> float:
    """Time to first token."""
    return served.first_s - served.arrival_s


def tpot_s(served: Served) -> float | None:
    """Mean time per token after the first; None where there is but one."""
    after = served.request.output_tokens - 1
    return (served.end_s - served.first_s) / after if after else None


def good_share(outcome: SimulatedRun, objectives: Objectives) -> float:
    """Share of all requests that are good."""
    return sum(map(objectives.good, outcome.served)) / len(outcome.served)


def summarise(outcome: SimulatedRun, objectives: Objectives) -> dict[str, Any]:
    """Fields of a row. Names as in ``vllm bench serve``; those it has not come last."""
    done = [served for served in outcome.served if not served.rejected]
    into = sum(served.request.input_tokens for served in done)
    out = sum(served.request.output_tokens for served in done)
    good, seconds = sum(map(objectives.good, done)), outcome.duration_s
    found: dict[str, Any] = {
        "num_prompts": len(outcome.served),
        "duration": seconds,
        "completed": len(done),
        "failed": len(outcome.served) - len(done),
        "total_input_tokens": into,
        "total_output_tokens": out,
    }
    rates = {"request_throughput": len(done), "request_goodput": good, "output_throughput": out}
    rates["total_token_throughput"] = into + out
    found |= {name: count / seconds if seconds else 0.0 for name, count in rates.items()}
    found |= _of("ttft", [ttft_s(served) for served in done])
    found |= _of("tpot", [each for served in done if (each := tpot_s(served)) is not None])
    found |= _of("itl", *(zip(*outcome.gaps, strict=True) if outcome.gaps else ([],)))
    found |= _of("e2el", [served.end_s - served.arrival_s for served in done])
    return found | {
        "good_frac": good / len(outcome.served),
        "preemptions": sum(served.preemptions for served in outcome.served),
        "peak_batch": outcome.peak_batch,
        "busy_frac": outcome.busy_s / seconds if seconds else 0.0,
        "steps": outcome.steps,
    }


def _of(name: str, seconds: Any, counts: Any = None) -> dict[str, float]:
    """Mean, deviation and percentiles in milliseconds; nothing of nothing."""
    values = 1000 * np.asarray(list(seconds), dtype=float)
    if not len(values):
        return {}
    weights = np.ones(len(values)) if counts is None else np.asarray(list(counts), dtype=float)
    mean = float(np.average(values, weights=weights))
    spread = float(np.average((values - mean) ** 2, weights=weights)) ** 0.5
    reached = percentiles(values, weights)
    found = {f"mean_{name}_ms": mean, f"median_{name}_ms": reached[50], f"std_{name}_ms": spread}
    return found | {f"p{percent}_{name}_ms": value for percent, value in reached.items()}


def percentiles(values: np.ndarray, weights: np.ndarray) -> dict[int, float]:
    """By percent: the smallest value that at least so much of the weight does not exceed."""
    shares = np.array(PERCENTILES) / 100
    found = np.quantile(values, shares, weights=weights, method="inverted_cdf")
    return dict(zip(PERCENTILES, found.tolist(), strict=True))


def sustained(outcome: SimulatedRun, rate_per_s: float) -> bool:
    """Whether arrivals went on for longer than the slowest tenth of the requests took.

    So few requests at such a rate are one burst, and say nothing about the rate.
    """
    took = [served.end_s - served.arrival_s for served in outcome.served if not served.rejected]
    return bool(took) and len(outcome.served) / rate_per_s >= float(np.quantile(took, 0.9))


def largest_rate(holds: Callable[[float], bool], start_per_s: float, steps: int = 7) -> float:
    """The largest rate that ``holds``, to about half a percent; 0 where none does.

    Found by doubling or halving, then by bisection.
    """
    low, high = 0.0, start_per_s
    for _ in range(40):
        if not holds(high):
            break
        low, high = high, 2 * high
    for _ in range(0 if low else 40):
        if holds(high / 2):
            low = high / 2
            break
        high /= 2
    for _ in range(steps if low else 0):
        middle = (low * high) ** 0.5
        low, high = (middle, high) if holds(middle) else (low, middle)
    return low
