"""A real browser without a window: shows a page, and acts on it as a reader does."""

import contextlib
import functools
import html
import http.server
import json
import re
import shutil
import subprocess
import threading

import pytest

_NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")
# the page stands in a frame of a page of ours, whose script may reach into it
_STAGE = """<!doctype html><meta charset="utf-8"><style>body{margin:0}</style>
<iframe id="frame" src="%s" style="border:0;width:100vw;height:100vh"></iframe><pre id="out"></pre>
<script>
const frame = document.getElementById("frame");
const wait = (ms) => new Promise((done) => setTimeout(done, ms));
(async () => {
  let found;
  try {
    for (let i = 0; i < 200; i++) {
      if (frame.contentDocument?.documentElement?.dataset.drawn !== undefined) break;
      await wait(50);
    }
    const page = frame.contentDocument, all = (what) => [...page.querySelectorAll(what)];
    found = await (async () => { %s })();
  } catch (error) { found = { error: String(error) }; }
  document.getElementById("out").textContent = JSON.stringify(found);
})();
</script>"""


def browser():
    """Path of a browser; the test is skipped where there is none."""
    found = next(filter(None, map(shutil.which, _NAMES)), None)
    return found or pytest.skip(f"no browser here (one of {', '.join(_NAMES)})")


def call(folder, *arguments):
    """Run the browser; (what it wrote, what its console said)."""
    command = [browser(), "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars"]
    command += [f"--user-data-dir={folder / 'profile'}", "--enable-logging=stderr"]
    command += ["--virtual-time-budget=20000", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600)
    return done.stdout, [line for line in done.stderr.splitlines() if "CONSOLE" in line]


@contextlib.contextmanager
def served(folder):
    """The address of a server of the files of a folder."""

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_):
            pass

    handler = functools.partial(Quiet, directory=str(folder))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def act(path, script, shot=None, size=(1400, 1400), query=""):
    """What ``script`` returns in the page (``page``, ``all(selector)``, ``wait(ms)``)."""
    folder = path.parent
    (folder / "stage.html").write_text(_STAGE % (path.name + query, script))
    with served(folder) as address:
        what = [f"--screenshot={shot}"] if shot else ["--dump-dom"]
        what += [f"--window-size={size[0]},{size[1]}"]
        written, said = call(folder, *what, f"{address}/stage.html")
    if shot:
        return None
    found = json.loads(html.unescape(re.search(r'id="out">(.*?)</pre>', written, re.S).group(1)))
    assert not (isinstance(found, dict) and "error" in found), (found, said)
    return found
