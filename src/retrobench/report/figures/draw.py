"""Figures, from rows only; each file embeds the cells, digests and commits that it shows."""

import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from retrobench.core.cell import digest
from retrobench.core.code import code_fingerprint
from retrobench.core.registry import method_names
from retrobench.report import headroom
from retrobench.report.figures import (
    ablation,
    accuracy,
    cost,
    fidelity,
    search,
    serving,
    speed,
    style,
    throughput,
)
from retrobench.report.rows import NotEnoughRows
from retrobench.store.columns import cell_columns
from retrobench.store.results import ResultStore
from retrobench.store.row_file import OK

_MODULES = (accuracy, cost, ablation, fidelity, search, speed, throughput, serving)
FIGURES: dict[str, Callable[[pd.DataFrame], Any]] = {
    name: figure for module in _MODULES for name, figure in module.FIGURES.items()
}
_SHOW_OOM = ("prefill_breakdown", *speed.FIGURES, *throughput.FIGURES)


def draw(
    store: ResultStore,
    out: Path,
    names: Sequence[str] | None = None,
    keys: Sequence[str] | None = None,
) -> list[tuple[str, Path | None, str]]:
    """Draw figures as PDF and PNG: ``(name, path of the PNG or None, reason if not drawn)``.

    From all cells, or from those of ``keys``. A figure shows one model: where the rows have
    several, each gets its own file, ``NAME_MODEL``.
    """
    frame, names = load(store, keys), names or list(FIGURES)
    if frame.empty:
        return [(name, None, f"no rows in {store.root}: python run.py") for name in names]
    out.mkdir(parents=True, exist_ok=True)
    results: list[tuple[str, Path | None, str]] = []
    for name in names:
        drawn, reasons = [], []
        for model, rows in _by_model(frame):
            path = out / (f"{name}_{model}.png" if model else f"{name}.png")
            try:
                drawing = FIGURES[name](rows)
                style.save(drawing, path, name, _source(store, rows, drawing.retrobench_cells))
            except NotEnoughRows as error:
                reasons.append(str(error))
                continue
            except (KeyError, TypeError, ValueError) as error:  # rows that were changed by hand
                reasons.append(f"rows cannot be drawn ({type(error).__name__}: {error})")
                continue
            drawn.append((path.stem, path, ""))
        # of several models, the one that has rows says what is missing
        reasons.sort(key=lambda reason: reason.startswith("no rows"))
        results += drawn or [(name, None, reasons[0])]
    return results


def _by_model(frame: pd.DataFrame) -> list[tuple[str, pd.DataFrame]]:
    """Rows of each model under a name that files may have; no name if there is but one model."""
    models = sorted(frame["model"].unique())
    if len(models) < 2:
        return [("", frame)]
    return [(re.sub(r"[^\w.-]+", "-", name), frame[frame["model"] == name]) for name in models]


def load(store: ResultStore, keys: Sequence[str] | None = None) -> pd.DataFrame:
    """Every column of the rows, and whole what ``fidelity`` and ``search`` measured, curves too.

    A cell that was refused for lack of memory counts as a row of status ``oom`` for each of its
    tasks, at its longest length.
    """
    frame = _with_refused(headroom.load(store, None, keys), store, keys)
    for name, mark in (("fidelity", "fidelity.steps"), ("search", "search.keys")):
        if mark in frame:
            frame = frame.assign(**{name: _whole(frame, store, name, mark)})
    return frame


def _whole(frame: pd.DataFrame, store: ResultStore, name: str, mark: str) -> pd.Series:
    """A nested field of the rows that have ``mark``; None in others."""
    measured = frame.loc[frame[mark].notna(), "key"].unique()
    rows = {key: store.read(key).rows for key in measured}
    pairs = zip(frame["key"], frame["sample"], strict=True)
    found = [rows[key][sample].get(name) if key in rows else None for key, sample in pairs]
    return pd.Series(found, index=frame.index, dtype=object)


def _with_refused(
    frame: pd.DataFrame, store: ResultStore, keys: Sequence[str] | None
) -> pd.DataFrame:
    refused = []
    for key in store.sound_keys(keys):
        status = store.status(key)
        if (status.get("state"), status.get("reason")) != ("impossible", "oom"):
            continue
        about = store.cell(key)
        task = about["cell"]["task"]
        length = max(np.atleast_1d(task.get("length") or 0))
        for name in task.get("tasks") or [task["name"]]:
            row = {"sample": "refused", "status": "oom", "length": length, "task": name}
            refused.append({**cell_columns(key, about), **row})
    return pd.concat([frame, pd.DataFrame(refused)], ignore_index=True) if refused else frame


def figure_source(path: Path) -> str:
    """Cell keys and commits that a drawn PDF or PNG was made from; ValueError if it holds none."""
    match = re.search(rb"retrobench cells [^)\x00]*?\.", path.read_bytes())
    if match is None:
        raise ValueError(f"{path}: no retrobench source in this file")
    return match.group().decode()


def figure_cells(path: Path) -> dict[str, str]:
    """Cell key to the digest of its rows, as they were when the figure was drawn."""
    return dict(re.findall(r"\b([0-9a-f]{16}):([0-9a-f]{8})\b", figure_source(path)))


def check(store: ResultStore, paths: Sequence[Path]) -> list[str]:
    """What is wrong with drawn figures: a line for each missing, changed, failed or stale cell.

    Stale: the code of the method or the engine has changed since the rows were made.
    """
    fields = ["key", "method", "sample", "status", "score", "code"]
    frame = _with_refused(store.columns(fields), store, None)[fields]
    now = {name: code_fingerprint(name) for name in method_names() if name in set(frame["method"])}
    findings = []
    for path in paths:
        for key, mark in figure_cells(path).items():
            rows = frame[frame["key"] == key]
            show_oom = path.stem.startswith(_SHOW_OOM)
            findings += [
                f"{path.name}: {key}: {what}" for what in _wrong(rows, mark, now, show_oom)
            ]
    return findings


def _wrong(rows: pd.DataFrame, mark: str, now: dict[str, str], show_oom: bool) -> list[str]:
    """What is wrong with a cell of a figure; ``now``: today's code of every method."""
    if rows.empty:
        return ["its rows are missing"]
    findings = []
    if _mark(rows) != mark:
        findings.append("its rows have changed since the figure was drawn")
    fine = {OK, *(["oom"] if show_oom else [])}
    for status, count in rows["status"].value_counts().items():
        if status not in fine:
            findings.append(f"{count} rows are {status}")
    if set(rows["code"].dropna()) - {now[rows["method"].iloc[0]]}:
        findings.append("stale, made by other code than today's")
    return findings


def _source(store: ResultStore, frame: pd.DataFrame, keys: Sequence[str]) -> str:
    marks = {key: _mark(rows) for key, rows in frame.groupby("key") if key in set(keys)}
    commits = {str(store.cell(key)["provenance"]["commit"])[:12] for key in keys}
    cells = " ".join(f"{key}:{marks[key]}" for key in keys)
    return f"retrobench cells {cells} commits {' '.join(sorted(commits))}."


def _mark(rows: pd.DataFrame) -> str:
    """Digest of a cell's rows: samples, statuses and scores."""
    fields = rows[["sample", "status", "score"]].sort_values("sample")
    return digest(fields.to_csv(index=False), 8)
