"""How far a running sweep is: samples done of those it set out to run, and when it will end."""

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import pandas as pd

from retrobench.core.cell import digest
from retrobench.core.words import duration
from retrobench.store.columns import stamp as folder_stamp
from retrobench.store.results import ResultStore
from retrobench.store.sweeps import CELLS_FILE, newest_plan, read_entries

_ENDED = ("done", "failed", "impossible")


def stamp(store: ResultStore, keys: Sequence[str]) -> str:
    """Changes whenever a file of these cells does."""
    return digest([list(keys), [folder_stamp(store.root / key) for key in keys]])


def progress(store: ResultStore, name: str | None, now: datetime | None = None) -> dict[str, Any]:
    """``done`` and ``total`` samples of the newest launch of a sweep (or of all), and a text.

    ``total`` is 0 where no sweep was started, or where a benchmark does not know its samples.
    """
    now = now or datetime.now(UTC)
    plan = newest_plan(store, name)
    if plan is None:
        return {"done": 0, "total": 0, "text": f"no sweep{' ' + name if name else ''} was started"}
    rows = _rows_since(store, plan)
    done, total, ended = _count(store, plan, rows["key"].value_counts())
    sweep, cells = plan["folder"].parent.name, len(plan["cells"])
    text = f"{sweep}: {done} of {total} samples, {ended} of {cells} cells ended"
    if ended < cells:
        text += _end(done, total, now - _time(plan["started"]), now)
    if len(rows):
        text += f"; newest row {_duration(now - _time(rows['time'].max()))} ago"
    return {"done": done, "total": total, "text": text}


def _rows_since(store: ResultStore, plan: dict[str, Any]) -> pd.DataFrame:
    """``key`` and ``time`` of the rows of a plan's cells that were written since it was made."""
    keys = [cell["key"] for cell in plan["cells"] if cell["key"]]
    rows = store.columns(["key", "time"], keys).dropna().astype(str)
    return rows[rows["time"] >= plan["started"]]


def _count(store: ResultStore, plan: dict[str, Any], tried: pd.Series) -> tuple[int, int, int]:
    """(Samples done, samples in all, cells that ended); ``tried``: new rows by cell."""
    done = ended = 0
    path = plan["folder"] / CELLS_FILE
    entries = read_entries(path)[0] if path.exists() else []
    known = {cell["key"] for cell in plan["cells"]}
    solved = sum(entry.get("key") not in known for entry in entries)  # keys unknown at first
    for cell in plan["cells"]:
        todo = cell["todo"] or 0
        if not cell["key"]:
            over = solved > 0
            solved -= 1
        else:
            status = store.status(cell["key"])
            since = str(status.get("time") or "") >= plan["started"]
            over = status.get("state") in _ENDED and since
        done += todo if over else min(todo, int(tried.get(cell["key"], 0)))
        ended += over
    return done, sum(cell["todo"] or 0 for cell in plan["cells"]), ended


def _end(done: int, total: int, taken: timedelta, now: datetime) -> str:
    if not done or not total:
        return "; the end is not known yet"
    left = taken / done * (total - done)
    return f"; about {_duration(left)} left, until {now + left:%H:%M} UTC"


def _time(text: str) -> datetime:
    return datetime.strptime(text, "%Y-%m-%dT%H:%M:%SZ").replace(tzinfo=UTC)


def _duration(span: timedelta) -> str:
    return duration(max(0.0, span.total_seconds()))
