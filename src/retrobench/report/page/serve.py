"""The page while a sweep runs: a server that only this machine can reach, and only by its name.

A page of another site could send requests here, or let its own name point here (DNS rebinding);
requests whose ``Host`` is not this server are refused, and so is everything that is not a GET.
"""

import json
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from retrobench.measure.clock import monotonic_s
from retrobench.report.page.html import render
from retrobench.report.page.progress import progress, stamp
from retrobench.store.results import ResultStore
from retrobench.store.sweeps import newest_plan, sweep_keys, sweep_names

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
        plan = newest_plan(self.store, self.sweep)
        keys = [cell["key"] for cell in plan["cells"]] if plan else []
        if self.sweep in sweep_names(self.store):
            keys += sweep_keys(self.store, self.sweep)
        return self.store.sound_keys(list(dict.fromkeys(filter(None, keys))))


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
