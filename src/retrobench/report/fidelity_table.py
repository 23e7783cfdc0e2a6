"""The fidelity part of the tables: how far each cell is from exact attention, and where."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pandas as pd

from retrobench.store.results import OK

# column -> (statistic, measure), as `measure.fidelity` names them
ATTENTION = {
    "recall": ("mean", "recall"),
    "p5": ("tail", "recall"),
    "oracle": ("mean", "oracle"),
    "regret": ("mean", "regret"),
    "overlap": ("mean", "overlap"),
    "recall@100": ("mean", "recall_100"),
    "KL": ("logits", "kl"),
    "agree": ("logits", "agreement"),
}
OUTPUT = {
    "error": ("mean", "error"),
    "p95": ("tail", "error"),
    "in exact": ("mean", "error_exact"),
    "in estimated": ("mean", "error_estimated"),
    "in ignored": ("mean", "error_ignored"),
    "mass true": ("mean", "mass_true"),
    "mass estimated": ("mean", "mass_estimated"),
}


def fidelity_matrix(
    frame: pd.DataFrame,
    labels: Callable[[pd.DataFrame], dict[str, Any]],
    columns: dict[str, tuple[str, str]],
) -> pd.DataFrame:
    """Means over samples per cell, as text; empty where nothing was measured."""
    if "fidelity" not in frame:
        return pd.DataFrame()
    measured = frame[(frame["status"] == OK) & frame["fidelity"].notna()]
    rows = []
    for _, cell in measured.groupby("key", sort=False):
        layers = {_span(f["sparse_layers"]) for f in cell["fidelity"] if f["steps"]}
        values = {"sparse layers": " or ".join(sorted(layers))}
        for column, (part, name) in columns.items():
            found = [f[part][name] for f in cell["fidelity"] if name in f.get(part, {})]
            mean = sum(found) / len(found) if found else None
            values[column] = "" if mean is None else f"{mean if abs(mean) > 5e-7 else 0:.3g}"
        rows.append({**labels(cell), **values})
    table = pd.DataFrame(rows)
    return table.drop(columns=[c for c in columns if rows and not table[c].any()])


def _span(layers: list[int]) -> str:
    if not layers:
        return "none"
    whole = layers == list(range(layers[0], layers[-1] + 1))
    return f"{layers[0]}-{layers[-1]}" if whole and len(layers) > 1 else ",".join(map(str, layers))
