"""The live page: who may ask for it, how it follows a sweep, what it says of the end."""

import contextlib
import http.client
import json
import re
import threading
from datetime import UTC, datetime

import pytest

pytest.importorskip("altair")
pytest.importorskip("vl_convert")

from retrobench.cli import console
from retrobench.report.page import serve
from retrobench.report.page.serve import progress
from tests.report.browser import call

START = "2026-01-01T10:00:00Z"


@contextlib.contextmanager
def running(store, sweep=None):
    with serve.make_server(store, sweep, 0) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()


def ask(server, path="/", method="GET", **headers):
    connection = http.client.HTTPConnection(*server.server_address)
    connection.request(method, path, headers=headers)
    answer = connection.getresponse()
    return answer.status, answer.read().decode()


def plan(store, cells, sweep="mine", started=START):
    folder = store.root / "sweeps" / sweep / "2026-01-01_10-00-00"
    folder.mkdir(parents=True)
    cells = [{"key": key, "label": "a cell", "todo": todo} for key, todo in cells]
    (folder / "plan.json").write_text(json.dumps({"started": started, "cells": cells}))
    return folder


def test_only_this_machine_under_its_own_name_may_read(lab):
    lab.cell("full", rows=lab.rows())
    with running(lab.store) as server:
        address, port = server.server_address
        assert address == "127.0.0.1"
        status, page = ask(server)
        assert status == 200 and "made_up · ruler" in page and "connect-src 'self'" in page
        assert ask(server, Host=f"localhost:{port}")[0] == 200
        for host in ("evil.example", f"evil.example:{port}", "127.0.0.1", f"127.0.0.1:{port + 1}"):
            assert ask(server, Host=host)[0] == 403
            assert ask(server, "/progress.json", Host=host)[0] == 403
        assert ask(server, "/../../etc/passwd")[0] == ask(server, "/cell.json")[0] == 404
        assert ask(server, method="POST")[0] == 501
        with pytest.raises(ValueError, match=f"--port {port}: .*choose another"):
            serve.make_server(lab.store, None, port)


def test_the_progress_of_a_sweep_and_its_end(lab):
    rows = [lab.row(index=i, time=f"2026-01-01T10:0{i}:00Z") for i in range(1, 4)]
    old = lab.row(index=9, time="2025-12-31T00:00:00Z")
    running_, waiting = lab.cell("full", rows=[*rows, old], state="running"), "0" * 16
    folder = plan(lab.store, [(running_, 6), (waiting, 3), ("", 3)])
    now = datetime(2026, 1, 1, 10, 4, tzinfo=UTC)
    found = progress(lab.store, "mine", now)
    assert (found["done"], found["total"]) == (3, 12)
    assert found["text"] == (
        "mine: 3 of 12 samples, 0 of 3 cells ended; about 12 min left, until 10:16 UTC; "
        "newest row 60 s ago"
    )
    ended = {"key": "f" * 16, "ran": 3, "cached": 0, "failed": {}, "message": "", "label": "x"}
    (folder / "cells.jsonl").write_text(json.dumps(ended) + "\n")
    assert progress(lab.store, None, now)["done"] == 6  # the cell whose key was not known
    lab.store.set_status(running_, {"state": "done", "time": "2026-01-01T10:04:00Z"})
    assert progress(lab.store, None, now)["done"] == 9
    assert progress(lab.store, "other", now)["text"] == "no sweep other was started"
    (folder / "plan.json").write_text('{"cells": [3]}')
    assert progress(lab.store, "mine", now)["total"] == 0


def test_the_page_follows_the_rows(lab, tmp_path, monkeypatch):
    """The browser stays on the page while a cell is added to the sweep."""
    monkeypatch.setattr(serve, "_LEAST_S", 0.0)
    monkeypatch.setattr(serve, "_SHARE", 0.0)
    key = lab.cell("full", rows=lab.rows())
    plan(lab.store, [(key, 6)])
    asked, make = [], serve.LivePage.progress

    def progress_then_a_new_cell(page):
        found = make(page)
        asked.append(found)
        if len(asked) == 2:
            lab.cell("retroinfer", budget="10%", rows=lab.rows(score=0.5))
        return found

    monkeypatch.setattr(serve.LivePage, "progress", progress_then_a_new_cell)
    with running(lab.store) as server:
        assert "retroinfer" not in ask(server)[1]
        page, said = call(tmp_path, "--dump-dom", f"http://127.0.0.1:{server.server_port}")
    assert said == [] and len(asked) > 2
    assert "retroinfer" in re.search(r"<main>.*</main>", page, re.S).group()
    assert "mine: " in re.search(r'<aside id="progress".*?</aside>', page, re.S).group()


def test_a_sweep_shows_the_cells_that_it_planned(lab):
    mine = lab.cell("full", rows=lab.rows())
    other = lab.cell("quest", rows=lab.rows())
    plan(lab.store, [(mine, 6), ("1" * 16, 6)])
    page = serve.LivePage(lab.store, "mine").page().decode()
    assert mine in page and other not in page


def test_a_page_that_was_made_just_now_is_not_made_again(lab):
    lab.cell("full", rows=lab.rows())
    live = serve.LivePage(lab.store, None)
    first, stamp = live.page(), json.loads(live.progress())["stamp"]
    lab.cell("quest", rows=lab.rows())
    assert live.page() is first and json.loads(live.progress())["stamp"] == stamp


@pytest.mark.parametrize(
    "arguments, words", [(["--results", "none"], "no such folder"), (["--port", "99999"], "--port")]
)
def test_bad_input_of_serve_is_one_line(tmp_path, capsys, arguments, words):
    with pytest.raises(SystemExit):
        console.main(["serve", "--results", str(tmp_path), *arguments])
    assert words in capsys.readouterr().err
