"""What identifies a line of a table: the labels of its cell, and what was attended."""

from collections.abc import Iterator, Mapping
from typing import Any

import pandas as pd

from retrobench.report import attended

LABELS = ["model", "method", "changed", "engine.batch", "budget", "attended", "protocol", "key"]


def each_label(
    frame: pd.DataFrame, by: tuple[str, ...] = ("key",)
) -> Iterator[tuple[tuple[Any, ...], dict[str, Any]]]:
    """(Values of ``by``, labels) of every line, in the order of the rows."""
    by = list(by)
    texts = attended.texts(frame, by)
    columns = list(dict.fromkeys([*LABELS, *by]))
    for first in frame.drop_duplicates(by).reindex(columns=columns).to_dict("records"):
        line = tuple(first[name] for name in by)
        yield line, _label(first, texts.get(line, ""))


def _label(row: Mapping[str, Any], attended_text: str) -> dict[str, Any]:
    """Labels of a row's cell; what is as usual is left out or empty."""
    labels = {name: row.get(name) for name in LABELS}
    labels["key"] = labels["key"][:6]
    if not labels["changed"] or pd.isna(labels["changed"]):
        labels["changed"] = ""
    if labels["protocol"] == "query_aware":
        labels.pop("protocol")
    if labels["budget"] is None or pd.isna(labels["budget"]):
        labels["budget"] = "default"
    labels["attended"] = attended_text
    batch = labels.pop("engine.batch")
    if batch > 1:
        labels["batch"] = f"{batch:.0f}"
    return labels


def short_label(labels: Mapping[str, Any]) -> str:
    """Method, changed options and budget of a line, as far as they are not the defaults."""
    budget = "" if labels["budget"] == "default" else labels["budget"]
    return " ".join(filter(None, [labels["method"], labels["changed"], budget]))
