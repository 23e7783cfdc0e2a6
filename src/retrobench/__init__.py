"""retrobench: an honest harness for long-context KV-cache methods."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pandas as pd

__version__ = "0.1.0"


def load(
    results_dir: str | Path = "results/runs", columns: list[str] | None = None
) -> pd.DataFrame:
    """Every row of a results folder as one flat DataFrame (for notebooks), a line per sample.

    Nested values have dotted names, e.g. ``live.hit_ratio`` or ``method.tokens_per_cluster``.
    ``columns``: names and patterns (``live.*``); a column that no row has is empty. None: all.
    ValueError if there is no such folder.
    """
    from retrobench.store.results import ResultStore

    if not Path(results_dir).is_dir():
        raise ValueError(f"{results_dir}: no such folder; `python run.py` makes results/runs")
    return ResultStore(results_dir).columns(columns)
