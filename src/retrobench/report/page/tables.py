"""Tables of the page: entries with an interval, a place to sort by and a heat in [0, 1]."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd

from retrobench.core.words import counted
from retrobench.report.rows import token_count
from retrobench.report.tables.cost import COLUMNS as COSTS
from retrobench.report.tables.cost import NOTE as COST_NOTE
from retrobench.report.tables.labels import LABELS, each_label
from retrobench.report.tables.layout import number
from retrobench.report.tables.scores import caption, column_names, score_entries
from retrobench.stats.intervals import bootstrap_means, mean_interval
from retrobench.store.row_file import OK

_LABELS = {*LABELS, "context", "batch", "task", "length", "source", "status", "sparse layers"}
_NUMBER = re.compile(r"[+-]?\d+(\.\d+)?(e[+-]?\d+)?")


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """What a table shows in one place; ``heat`` colours it, ``tip`` is for the pointer."""

    text: str
    interval: str = ""
    tip: str = ""
    heat: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Table:
    """A titled table; ``hue`` is ``score`` (absolute, 0 to 100) or ``amount`` (by column)."""

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[Entry]]
    note: str = ""
    hue: str = "amount"
    labels: int = 0  # so many leading columns name the row


def score_table(frame: pd.DataFrame) -> Table:
    """Mean scores with 95% intervals, a row per cell and a column per sub-task and length."""
    entries, average = score_entries(frame)
    columns, lines = list(column_names(frame).unique()), []
    for (key,), labels in _labels(frame):
        own = entries.loc[key]
        line = [Entry(text=str(text)) for text in labels.values()]
        line.append(_average(own, average.get(key, np.nan)))
        found = own.to_dict("index")
        line += [_score(found[name]) if name in found else Entry(text="") for name in columns]
        lines.append((labels, line))
    names = list(lines[0][0])
    lengths = {name.partition("@")[2] for name in columns}
    at = f" at {lengths.pop()}" if len(lengths) == 1 and "" not in lengths else ""
    shown = [name.partition("@")[0] for name in columns] if at else columns
    heads, rows = [*names, "avg", *shown], [line for _, line in lines]
    title, note = f"Scores (x100){at}", caption(frame)
    return without_silent(
        Table(title=title, columns=heads, rows=rows, note=note, hue="score", labels=len(names))
    )


def interval_of_average(entries: pd.DataFrame) -> tuple[float, float]:
    """95% interval of a cell's average over its columns with headroom, which weigh the same."""
    points = entries.loc[entries["counts"] & entries["mean"].notna(), "points"]
    draws = [bootstrap_means(own, seed=number) for number, own in enumerate(points)]
    low, high = np.quantile(np.mean(draws, axis=0), [0.025, 0.975])
    return float(low), float(high)


def _average(own: pd.DataFrame, mean: float) -> Entry:
    if np.isnan(mean):
        return Entry(text="-")
    low, high = interval_of_average(own)
    tip = f"mean of {(own['counts'] & own['mean'].notna()).sum()} columns with headroom"
    return Entry(text=f"{mean:.1f}", interval=_span(low, high, ".0f"), tip=tip, heat=mean / 100)


def _score(entry: dict) -> Entry:
    count = counted(entry["rows"], "sample")
    if entry["failed"] or not entry["points"]:
        return Entry(text=entry["text"], tip=count)
    mean, low, high = mean_interval(entry["points"])
    span, heat = _span(low, high, ".0f"), mean / 100
    return Entry(text=f"{mean:.1f}", interval=span, tip=f"{count}, 95% interval", heat=heat)


def cost_table(frame: pd.DataFrame) -> Table:
    """Medians with quartiles per cell and length."""
    good = frame[frame["status"] == OK]
    values = pd.DataFrame({name: of(good) for name, (of, _) in COSTS.items()}, dtype=float)
    groups = values.groupby([good["key"], good["length"]], sort=False)
    low, median, high = (groups.quantile(share) for share in (0.25, 0.5, 0.75))
    heats = median.apply(_heats)
    names: list[str] = []
    rows = []
    for place, labels in _labels(good, by=("key", "length")):
        labels["context"] = token_count(place[1]) if place[1] else ""
        names = list(labels)
        line = [Entry(text=str(text)) for text in labels.values()]
        for name, (_, form) in COSTS.items():
            middle, heat = median.loc[place, name], heats.loc[place, name]
            span = _span(low.loc[place, name], high.loc[place, name], form)
            known = None if np.isnan(heat) else float(heat)
            line.append(Entry(text=number(middle, form), interval=span, heat=known))
        rows.append(line)
    heads = [*names, *COSTS]
    title = "Cost (medians and quartiles)"
    table = Table(title=title, columns=heads, rows=rows, note=COST_NOTE, labels=len(names))
    return without_silent(table)


def plain_table(title: str, matrix: pd.DataFrame, note: str = "") -> Table:
    """Any table of texts; columns of numbers get a heat."""
    matrix = matrix.drop(columns=[name for name in ("model",) if name in matrix])
    texts = matrix.astype(object).where(matrix.notna(), "").astype(str)
    rows = [[Entry(text=text) for text in line] for line in texts.to_numpy().tolist()]
    for place, name in enumerate(texts.columns):
        found = [_NUMBER.match(text) for text in texts[name]]
        if name in _LABELS or not all(found) or len(rows) < 2:
            continue
        heats = _heats(pd.Series([float(match.group()) for match in found if match]))
        for row, heat in zip(rows, heats, strict=True):
            row[place] = Entry(text=row[place].text, heat=None if np.isnan(heat) else float(heat))
    columns = [str(name) for name in texts.columns]
    labels = next((i for i, name in enumerate(columns) if name not in _LABELS), len(columns))
    return without_silent(Table(title=title, columns=columns, rows=rows, note=note, labels=labels))


def _labels(frame: pd.DataFrame, by: tuple[str, ...] = ("key",)):
    for place, labels in each_label(frame, by):
        yield place, {name: value for name, value in labels.items() if name != "model"}


def without_silent(table: Table) -> Table:
    """Without columns that say nothing in any row."""
    kept = [i for i in range(len(table.columns)) if any(row[i].text for row in table.rows)]
    columns = [table.columns[i] for i in kept]
    rows = [[row[i] for i in kept] for row in table.rows]
    return replace(table, columns=columns, rows=rows, labels=sum(i < table.labels for i in kept))


def _heats(values: pd.Series) -> pd.Series:
    """Places between the least and the largest value, by ratio where all are positive."""
    scaled = np.log(values) if (values.dropna() > 0).all() else values
    width = scaled.max() - scaled.min()
    return (scaled - scaled.min()) / width if width > 0 else scaled * np.nan


def _span(low: float, high: float, form: str) -> str:
    """An interval as text; nothing where both ends read the same."""
    texts = number(low, form), number(high, form)
    return "" if texts[0] == texts[1] else "–".join(texts)
