"""Bootstrap intervals of a mean, quick for scores that take few values."""

from collections.abc import Sequence

import numpy as np


def bootstrap_means(
    values: Sequence[float] | np.ndarray, draws: int = 2000, seed: int = 0
) -> np.ndarray:
    """Means of ``draws`` resamples with replacement.

    Resampling n values is one multinomial draw over the distinct ones, so the cost does not grow
    with n where scores are mostly 0 and 1.
    """
    distinct, counts = np.unique(np.asarray(values, dtype=float), return_counts=True)
    picks = np.random.default_rng(seed).multinomial(len(values), counts / counts.sum(), size=draws)
    return picks @ distinct / len(values)


def mean_interval(
    values: Sequence[float] | np.ndarray, level: float = 0.95
) -> tuple[float, float, float]:
    """(mean, low, high): the bootstrap percentile interval of the mean. ValueError if empty."""
    if not len(values):
        raise ValueError("an interval needs at least one value")
    tail = (1 - level) / 2
    low, high = np.quantile(bootstrap_means(values), [tail, 1 - tail])
    mean = float(np.mean(values))
    return mean, min(mean, float(low)), max(mean, float(high))  # rounding must not cross the mean
