"""The fidelity part of the tables: how far each cell is from exact attention, and where."""

from __future__ import annotations

import json
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
    "top 100": ("mean", "recall_100"),
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
# what these tables read of a row (see store.columns)
COLUMNS = ["fidelity.steps", "fidelity.sparse_layers"]
COLUMNS += [f"fidelity.{part}.{name}" for part, name in {**ATTENTION, **OUTPUT}.values()]


def fidelity_matrix(
    frame: pd.DataFrame,
    labels: Callable[[pd.DataFrame], dict[str, Any]],
    columns: dict[str, tuple[str, str]],
) -> pd.DataFrame:
    """Means over samples per cell, as text; empty where nothing was measured."""
    if frame["fidelity.steps"].isna().all():
        return pd.DataFrame()
    measured = frame[(frame["status"] == OK) & frame["fidelity.steps"].notna()]
    rows = []
    for _, cell in measured.groupby("key", sort=False):
        sparse = cell.loc[cell["fidelity.steps"] > 0, "fidelity.sparse_layers"].unique()
        values = {"sparse layers": " or ".join(sorted(_span(json.loads(s)) for s in sparse))}
        for column, (part, name) in columns.items():
            mean = cell[f"fidelity.{part}.{name}"].mean()
            values[column] = "" if pd.isna(mean) else f"{mean if abs(mean) > 5e-7 else 0:.3g}"
        rows.append({**labels(cell), **values})
    table = pd.DataFrame(rows)
    return table.drop(columns=[c for c in columns if rows and not table[c].any()])


def _span(layers: list[int]) -> str:
    if not layers:
        return "none"
    whole = layers == list(range(layers[0], layers[-1] + 1))
    return f"{layers[0]}-{layers[-1]}" if whole and len(layers) > 1 else ",".join(map(str, layers))
