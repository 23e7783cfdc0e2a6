"""The fidelity part of the tables: how far each cell is from exact attention, and where."""

import json
from typing import Any

import numpy as np
import pandas as pd

from retrobench.report.tables.labels import each_label
from retrobench.report.tables.layout import number
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
NOTE = (
    "recall: attention mass in the tokens attended (p5: 5th percentile); oracle: the most that as "
    "many tokens can hold; regret: oracle - recall; overlap: with as many heaviest tokens; "
    "top 100: of the 100 heaviest, share attended; KL: of next-token probabilities, in nats; "
    "agree: same next token; error: distance from the exact output over its norm (p95: 95th "
    "percentile), and the part of it in each zone; compared: layers that all methods leave sparse"
)
# what these tables read of a row (see store.columns)
COLUMNS = ["fidelity.steps", "fidelity.layers", "fidelity.sparse_layers"]
COLUMNS += [f"fidelity.{part}.{name}" for part, name in {**ATTENTION, **OUTPUT}.values()]


def fidelity_matrix(frame: pd.DataFrame, columns: dict[str, tuple[str, str]]) -> pd.DataFrame:
    """Means over samples per cell, as text; empty where nothing was measured.

    Over the layers of a model that all methods leave sparse: early layers are easy, so that a
    method which keeps them dense would otherwise be judged by the hard ones alone.
    """
    if frame["fidelity.steps"].isna().all():
        return pd.DataFrame()
    measured = frame[(frame["status"] == OK) & frame["fidelity.steps"].notna()]
    sparse = measured["fidelity.sparse_layers"].map(_list)
    common = {str(model): common_layers(own) for model, own in measured.groupby("model")}
    numbers = {
        column: measured[f"fidelity.{part}.{name}"]
        if part == "logits"
        else layer_means(measured, f"{part}.{name}", common)
        for column, (part, name) in columns.items()
    }
    means = pd.DataFrame(numbers, dtype=float).groupby(measured["key"], sort=False).mean()
    rows = []
    for (key,), labels in each_label(measured):
        own = sparse[measured["key"] == key]
        own = " or ".join(sorted({layer_range(layers) for layers in own}))
        values = {"sparse layers": own, "compared": layer_range(common[labels["model"]])}
        for column, mean in means.loc[key].items():
            values[column] = number(0 if abs(mean) < 5e-7 else mean, ".3g")
        rows.append({**labels, **values})
    table = pd.DataFrame(rows)
    return table.drop(columns=[c for c in columns if rows and not table[c].any()])


def common_layers(rows: pd.DataFrame) -> list[int]:
    """Layers that are sparse wherever any is; empty if there are none."""
    texts = rows["fidelity.sparse_layers"].unique()
    sets = [set(layers) for layers in map(_list, texts) if layers]
    return sorted(set.intersection(*sets)) if sets else []


def layer_means(rows: pd.DataFrame, measure: str, common: dict[str, list[int]]) -> pd.Series:
    """Mean of a measure over layers, per row: those common in its model, or else its sparse ones.

    Over all layers where there are neither (full attention); NaN where nothing was measured.
    """

    def mean(model: str, values: Any, layers: Any, sparse: Any) -> float:
        chosen = common[model] or _list(sparse)
        by_layer = zip(_list(values), _list(layers), strict=True) if isinstance(values, str) else ()
        picked = [value for value, layer in by_layer if layer in chosen]
        return float(np.mean(picked or _list(values) or np.nan))

    fields = ["model", *(f"fidelity.{name}" for name in (measure, "layers", "sparse_layers"))]
    columns = rows.reindex(columns=fields).itertuples(index=False, name=None)
    return pd.Series([mean(*row) for row in columns], index=rows.index, dtype=float)


def layer_range(layers: list[int]) -> str:
    """Layers as text."""
    if not layers:
        return "none"
    whole = layers == list(range(layers[0], layers[-1] + 1))
    return f"{layers[0]}-{layers[-1]}" if whole and len(layers) > 1 else ",".join(map(str, layers))


def _list(text: Any) -> list[Any]:
    return json.loads(text) if isinstance(text, str) else []
