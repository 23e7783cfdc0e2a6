"""Bootstrap intervals of a mean; paired comparison of two cells on the same samples."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


def bootstrap_means(values: Sequence[float] | np.ndarray, seed: int = 0) -> np.ndarray:
    """Means of 2000 resamples with replacement.

    Resampling n values is one multinomial draw over the distinct ones, so the cost does not grow
    with n where scores are mostly 0 and 1.
    """
    distinct, counts = np.unique(np.asarray(values, dtype=float), return_counts=True)
    picks = np.random.default_rng(seed).multinomial(len(values), counts / counts.sum(), size=2000)
    return picks @ distinct / len(values)


def mean_interval(values: Sequence[float] | np.ndarray) -> tuple[float, float, float]:
    """(mean, low, high): the 95% bootstrap percentile interval of the mean. ValueError if empty."""
    if not len(values):
        raise ValueError("an interval needs at least one value")
    low, high = np.quantile(bootstrap_means(values), [0.025, 0.975])
    mean = float(np.mean(values))
    return mean, min(mean, float(low)), max(mean, float(high))  # rounding must not cross the mean


@dataclass(frozen=True, slots=True)
class PairedComparison:
    """``ours`` against ``base`` on samples that both answered. Scores are in [0, 1]."""

    wins: int
    losses: int
    ties: int
    difference: float
    low: float
    high: float
    p_value: float


def compare(ours: Sequence[float], base: Sequence[float]) -> PairedComparison:
    """Mean difference with a 95% bootstrap interval, and the exact two-sided sign test."""
    if len(ours) != len(base) or not len(ours):
        raise ValueError(f"paired scores needed, got {len(ours)} and {len(base)}")
    gap = np.asarray(ours, dtype=float) - np.asarray(base, dtype=float)
    wins, losses = int((gap > 0).sum()), int((gap < 0).sum())
    low, high = np.quantile(bootstrap_means(gap), [0.025, 0.975])
    return PairedComparison(
        wins=wins,
        losses=losses,
        ties=len(gap) - wins - losses,
        difference=float(gap.mean()),
        low=float(low),
        high=float(high),
        p_value=sign_test(wins, losses),
    )


def sign_test(wins: int, losses: int) -> float:
    """Two-sided probability of a split at least as uneven, ties left out."""
    total, fewer = wins + losses, min(wins, losses)
    tail = sum(math.comb(total, k) for k in range(fewer + 1)) / 2**total
    return min(1.0, 2 * tail)


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's step-down correction: adjusted p-values in the given order."""
    p = np.asarray(p_values, dtype=float)
    order = np.argsort(p, kind="stable")
    scaled = np.minimum(1, np.arange(len(p), 0, -1) * p[order])
    adjusted = np.empty_like(p)
    adjusted[order] = np.maximum.accumulate(scaled)
    return adjusted.tolist()
