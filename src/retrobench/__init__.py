"""retrobench: an honest harness for long-context KV-cache methods."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pandas as pd

__version__ = "0.1.0"


def load(results_dir: str = "results/runs", columns: list[str] | None = None) -> pd.DataFrame:
    """Every row of a results folder as one flat DataFrame (for notebooks).

    Nested values have dotted names, e.g. ``live.hit_ratio`` or ``method.tokens_per_cluster``.
    """
    from retrobench.store.results import ResultStore

    return ResultStore(results_dir).columns(columns)
