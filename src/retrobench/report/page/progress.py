"""How far a running sweep is: samples done of those it set out to run, and when it will end."""

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

from retrobench.core.cell import digest
from retrobench.store.results import ResultStore
from retrobench.store.sweeps import CELLS_FILE, newest_plan, read_entries

_ENDED = ("done", "failed", "impossible")


def stamp(store: ResultStore, keys: Sequence[str]) -> str:
    """Changes whenever a file of these cells does."""
    found = []
    for key in keys:
        for name in ("cell.json", "rows.jsonl", "status.json"):
            path = store.root / key / name
            about = path.stat() if path.exists() else None
            found.append([about.st_size, about.st_mtime_ns] if about else None)
    return digest([list(keys), found])


def progress(store: ResultStore, name: str | None, now: datetime | None = None) -> dict[str, Any]:
    """``done`` and ``total`` samples of the newest launch of a sweep (or of all), and a text.

    ``total`` is 0 where no sweep was started, or where a benchmark does not know its samples.
    """
    now = now or datetime.now(UTC)
    plan = newest_plan(store, name)
    if plan is None:
        return {"done": 0, "total": 0, "text": f"no sweep{' ' + name if name else ''} was started"}
    done, total, ended = _count(store, plan)
    sweep, cells = plan["folder"].parent.name, len(plan["cells"])
    text = f"{sweep}: {done} of {total} samples, {ended} of {cells} cells ended"
    if ended < cells:
        text += _end(done, total, now - _time(plan["started"]), now)
    newest = _newest(store, plan)
    if newest:
        text += f"; newest row {_duration(now - _time(newest))} ago"
    return {"done": done, "total": total, "text": text}


def _count(store: ResultStore, plan: dict[str, Any]) -> tuple[int, int, int]:
    """(Samples done, samples in all, cells that ended) since the plan was made."""
    done = ended = 0
    path = plan["folder"] / CELLS_FILE
    entries = read_entries(path)[0] if path.exists() else []
    known = {cell["key"] for cell in plan["cells"]}
    solved = sum(entry.get("key") not in known for entry in entries)  # keys unknown at first
    for cell in plan["cells"]:
        todo = cell["todo"] or 0
        if not cell["key"]:
            over, tried = solved > 0, 0
            solved -= 1
        else:
            status = store.status(cell["key"])
            since = str(status.get("time") or "") >= plan["started"]
            over = status.get("state") in _ENDED and since
            tried = len(_times(store, cell["key"], plan["started"]))
        done += todo if over else min(todo, tried)
        ended += over
    return done, sum(cell["todo"] or 0 for cell in plan["cells"]), ended


def _times(store: ResultStore, key: str, since: str) -> list[str]:
    """When the rows of a cell were written, of those written since."""
    frame = store.columns(["time"], [key])
    return [time for time in frame["time"].dropna().astype(str) if time >= since]


def _newest(store: ResultStore, plan: dict[str, Any]) -> str:
    times = [_times(store, cell["key"], plan["started"]) for cell in plan["cells"] if cell["key"]]
    return max((time for own in times for time in own), default="")


def _end(done: int, total: int, taken: timedelta, now: datetime) -> str:
    if not done or not total:
        return "; the end is not known yet"
    left = taken / done * (total - done)
    return f"; about {_duration(left)} left, until {now + left:%H:%M} UTC"


def _time(text: str) -> datetime:
    return datetime.strptime(text, "%Y-%m-%dT%H:%M:%SZ").replace(tzinfo=UTC)


def _duration(span: timedelta) -> str:
    seconds = max(0, round(span.total_seconds()))
    if seconds < 90:
        return f"{seconds} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
