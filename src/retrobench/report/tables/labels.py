"""What identifies a cell in a table."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import pandas as pd

LABELS = ["model", "method", "changed", "engine.batch", "budget", "protocol", "key"]


def each_label(frame: pd.DataFrame) -> Iterator[tuple[str, dict[str, Any]]]:
    """Key and labels of every cell, in the order of the rows."""
    for first in frame.drop_duplicates("key").reindex(columns=LABELS).to_dict("records"):
        yield first["key"], label(first)


def label(row: Mapping[str, Any]) -> dict[str, Any]:
    """Labels of a row's cell; what is as usual is left out or empty."""
    labels = {name: row.get(name) for name in LABELS}
    labels["key"] = labels["key"][:6]
    if not labels["changed"] or pd.isna(labels["changed"]):
        labels["changed"] = ""
    if labels["protocol"] == "query_aware":
        labels.pop("protocol")
    if labels["budget"] is None or pd.isna(labels["budget"]):
        labels["budget"] = "default"
    batch = labels.pop("engine.batch")
    if batch > 1:
        labels["batch"] = f"{batch:.0f}"
    return labels
