"""The fidelity part of the tables: how far each cell is from exact attention, and where."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

import numpy as np
import pandas as pd

from retrobench.report.tables.labels import label
from retrobench.store.row_file import OK

# column -> (statistic, measure), as `measure.fidelity` names them
ATTENTION = {
    "recall": ("layer_mean", "recall"),
    "p5": ("layer_tail", "recall"),
    "oracle": ("layer_mean", "oracle"),
    "regret": ("layer_mean", "regret"),
    "overlap": ("layer_mean", "overlap"),
    "top 100": ("layer_mean", "recall_100"),
    "KL": ("logits", "kl"),
    "agree": ("logits", "agreement"),
}
OUTPUT = {
    "error": ("layer_mean", "error"),
    "p95": ("layer_tail", "error"),
    "in exact": ("layer_mean", "error_exact"),
    "in estimated": ("layer_mean", "error_estimated"),
    "in ignored": ("layer_mean", "error_ignored"),
    "mass true": ("layer_mean", "mass_true"),
    "mass estimated": ("layer_mean", "mass_estimated"),
}
# what these tables read of a row (see store.columns)
COLUMNS = ["fidelity.steps", "fidelity.layers", "fidelity.sparse_layers"]
COLUMNS += [f"fidelity.{part}.{name}" for part, name in {**ATTENTION, **OUTPUT}.values()]


def fidelity_matrix(frame: pd.DataFrame, columns: dict[str, tuple[str, str]]) -> pd.DataFrame:
    """Means over samples per cell, as text; empty where nothing was measured.

    Over the layers that all methods leave sparse: early layers are easy, so that a method which
    keeps them dense would otherwise be judged by the hard ones alone.
    """
    if frame["fidelity.steps"].isna().all():
        return pd.DataFrame()
    measured = frame[(frame["status"] == OK) & frame["fidelity.steps"].notna()]
    sparse = measured["fidelity.sparse_layers"].map(_layers)
    common = common_layers(sparse)
    rows = []
    for _, cell in measured.groupby("key", sort=False):
        own = sparse[cell.index]
        values = {"sparse layers": " or ".join(sorted({layer_range(layers) for layers in own}))}
        values["compared"] = layer_range(common)
        for column, (part, name) in columns.items():
            numbers = cell[f"fidelity.{part}.{name}"]
            if part != "logits":
                found = zip(numbers, cell["fidelity.layers"], own, strict=True)
                numbers = pd.Series([_over(n, ls, common or o) for n, ls, o in found])
            mean = numbers.mean()
            values[column] = "" if pd.isna(mean) else f"{mean if abs(mean) > 5e-7 else 0:.3g}"
        rows.append({**label(cell.iloc[0]), **values})
    table = pd.DataFrame(rows)
    return table.drop(columns=[c for c in columns if rows and not table[c].any()])


def common_layers(sparse: Iterable[list[int]]) -> list[int]:
    """Layers that are sparse wherever any is; empty if there are none."""
    sets = [set(layers) for layers in sparse if layers]
    return sorted(set.intersection(*sets)) if sets else []


def over_layers(values: list[float], layers: list[int], chosen: list[int]) -> float:
    """Mean of a measure by layer over the chosen layers; over all if none is chosen."""
    picked = [value for value, layer in zip(values, layers, strict=True) if layer in chosen]
    return float(np.mean(picked or values))


def layer_range(layers: list[int]) -> str:
    """Layers as text."""
    if not layers:
        return "none"
    whole = layers == list(range(layers[0], layers[-1] + 1))
    return f"{layers[0]}-{layers[-1]}" if whole and len(layers) > 1 else ",".join(map(str, layers))


def _layers(text: Any) -> list[int]:
    return json.loads(text) if isinstance(text, str) else []


def _over(values: Any, layers: Any, chosen: list[int]) -> float:
    known = isinstance(values, str)
    return over_layers(json.loads(values), _layers(layers), chosen) if known else np.nan
