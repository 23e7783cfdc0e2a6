"""The page while a sweep runs: a server that only this machine can reach, and only by its name.

A page of another site could send requests here, or let its own name point here (DNS rebinding);
requests whose ``Host`` is not this server are refused, and so is everything that is not a GET.
"""

import json
import threading
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pandas as pd

from retrobench.core.cell import digest
from retrobench.core.words import duration
from retrobench.measure.clock import monotonic_s
from retrobench.report.page.html import render
from retrobench.store.columns import stamp as folder_stamp
from retrobench.store.results import ResultStore
from retrobench.store.sweeps import CELLS_FILE, newest_plan, read_entries, sweep_keys

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


HOST = "127.0.0.1"
_LEAST_S, _SHARE = 10.0, 5.0  # a page is made at most so often, and for a fifth of the time


class LivePage:
    """The page of a results folder, made again when rows have changed, but not all the time."""

    def __init__(self, store: ResultStore, sweep: str | None) -> None:
        self.store, self.sweep = store, sweep
        self._page, self._stamp = b"", ""
        self._made_s = self._took_s = 0.0
        self._lock = threading.Lock()

    def page(self) -> bytes:
        """The newest page; the one before, if that was made just now."""
        with self._lock:
            if (now := self._due()) != self._stamp:
                start = monotonic_s()
                title = f"retrobench: {self.sweep or 'all cells'}"
                self._page = render(self.store, self._keys(), title, live=True)
                self._stamp, self._made_s = now, monotonic_s()
                self._took_s = self._made_s - start
            return self._page

    def progress(self) -> bytes:
        """``progress`` and the stamp of the page that ``page`` would give, as JSON."""
        return json.dumps({**progress(self.store, self.sweep), "stamp": self._due()}).encode()

    def _due(self) -> str:
        wait = max(_LEAST_S, _SHARE * self._took_s)
        if self._stamp and monotonic_s() - self._made_s < wait:
            return self._stamp
        return stamp(self.store, self._keys())

    def _keys(self) -> list[str]:
        """Cells of the sweep, planned or ended, or all cells; those that can be read."""
        if self.sweep is None:
            return self.store.sound_keys()
        try:
            keys = sweep_keys(self.store, self.sweep)
        except ValueError:  # nothing has begun
            return []
        return self.store.sound_keys(keys)


def make_server(store: ResultStore, sweep: str | None, port: int) -> ThreadingHTTPServer:
    """A server of the live page on 127.0.0.1; ValueError for a port that cannot be had."""
    live = LivePage(store, sweep)
    try:
        server = ThreadingHTTPServer((HOST, port), _handler(live))
    except (OSError, OverflowError) as error:
        raise ValueError(f"--port {port}: {error}; choose another, or 0 for a free one") from error
    live.page()  # what is missing is told before anybody looks
    return server


def serve(store: ResultStore, sweep: str | None, port: int, say: Callable[[str], None]) -> None:
    """Show the page until Ctrl-C."""
    with make_server(store, sweep, port) as server:
        say(f"http://{HOST}:{server.server_port} (this machine only; Ctrl-C ends)")
        try:
            server.serve_forever()
        except KeyboardInterrupt:
            say("ended")


def _handler(live: LivePage) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            port = self.connection.getsockname()[1]
            if self.headers.get("Host") not in {f"{HOST}:{port}", f"localhost:{port}"}:
                self.send_error(403, "This server answers under its own name only")
            elif self.path.partition("?")[0] == "/":
                self._send(live.page(), "text/html; charset=utf-8")
            elif self.path == "/progress.json":
                self._send(live.progress(), "application/json")
            else:
                self.send_error(404)

        def _send(self, body: bytes, kind: str) -> None:
            self.send_response(200)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(body)))
            self.send_header("Cache-Control", "no-store")
            self.send_header("X-Content-Type-Options", "nosniff")
            self.send_header("X-Frame-Options", "SAMEORIGIN")
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:
            """Say nothing: the terminal belongs to the sweep."""

    return Handler
