"""Cells as one HTML page: scripts, data and style are in the file, and it loads nothing else.

Whatever rows and names hold is shown as text. Jinja escapes it, data for scripts is JSON without
``<``, and the page's policy lets a browser run the page's own two scripts only.
"""

import base64
import hashlib
import tempfile
from collections.abc import Sequence
from functools import cache
from itertools import count
from pathlib import Path
from typing import Any

import pandas as pd

from retrobench.core.budget import Budget
from retrobench.report.benchmarks import is_unscored
from retrobench.report.checks.significance import significance
from retrobench.report.headroom import load
from retrobench.report.page import about, samples, tables
from retrobench.report.rows import ORDER, uses_substitutes
from retrobench.report.tables.overview import COLUMNS, Titled, further_tables, unscored_tables
from retrobench.store.results import ResultStore
from retrobench.store.row_file import OK

_HERE = Path(__file__).parent
_SETTING = ("method", "changed", "budget", "batch", "protocol")  # rows of the average scores


def write_report(
    store: ResultStore,
    keys: Sequence[str],
    title: str,
    path: Path,
    board: Sequence[tables.Table] = (),
) -> Path:
    """Write the page of some cells to ``path``. ValueError if they have no rows.

    ``board``: tables that come first.
    """
    page = render(store, keys, title, board=board)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(page)
    return path


def render(
    store: ResultStore,
    keys: Sequence[str],
    title: str,
    *,
    live: bool = False,
    board: Sequence[tables.Table] = (),
) -> bytes:
    """The page of some cells. ``live``: it asks its server for progress, and has no print figures.

    ValueError if there are no rows, unless ``live``, or if an extra is missing.
    """
    frame = load(store, [*COLUMNS, *samples.COLUMNS, "code", "time"], keys)
    if frame.empty and not live:
        raise ValueError(f"{title}: no rows yet in {store.root}")
    cells = [store.cell(key) for key in keys]
    lines = [] if frame.empty else significance(frame[~is_unscored(frame)])
    scripts = [_library(), (_HERE / "page.js").read_text(encoding="utf-8")]
    pairs = [] if frame.empty else frame.groupby(["model", "benchmark"])
    groups = [_group(str(model), str(name), own, store, lines) for (model, name), own in pairs]
    page = _template().render(
        title=title,
        live=live,
        facts=_facts(frame, keys),
        alarms=[line for line in lines if "ALARM" in line],
        unfinished=_unfinished(store, keys),
        board=board,
        overview=_overview(groups),
        groups=groups,
        cards=[] if frame.empty else about.method_cards(frame, cells),
        records=[about.provenance(cells), about.cell_table(store, cells)] if cells else [],
        options=about.options(cells),
        figures=[] if live else _figures(store, keys),
        scripts=scripts,
        hashes=[_hash(script) for script in scripts],
        style=(_HERE / "page.css").read_text(encoding="utf-8"),
    )
    return page.encode("utf-8", "replace")


def _group(
    model: str, benchmark: str, frame: pd.DataFrame, store: ResultStore, lines: Sequence[str]
) -> dict[str, Any]:
    """Tables, charts, comparisons and samples of one model and benchmark."""
    group = {"model": model, "benchmark": benchmark, "charts": [], "lines": [], "samples": None}
    if timed := list(map(_plain, unscored_tables(frame))):
        return {**group, "tables": timed}
    from retrobench.report.page.charts import charts

    found = [tables.score_table(frame), tables.cost_table(frame)]
    found += map(_plain, further_tables(frame))
    return {
        **group,
        "substitute": uses_substitutes(frame),
        "tables": [table for table in found if table.rows],
        "charts": charts(frame),
        "lines": [line for line in lines if f" {model} {benchmark} " in f" {line}"],
        "samples": samples.samples(frame, store),
    }


def _plain(titled: Titled) -> tables.Table:
    title, matrix, note = titled
    return tables.plain_table(title[0].upper() + title[1:], matrix, note)


def _overview(groups: Sequence[dict[str, Any]]) -> tables.Table | None:
    """Averages of every setting of a method: a row each, a column per model and benchmark."""
    names, averages = [], {}
    for group in groups:
        for table in group["tables"]:
            if table.hue != "score":
                continue
            names.append(f"{group['model']} · {group['benchmark']}")
            for row in table.rows:
                entries = dict(zip(table.columns, row, strict=True))
                setting = tuple(entries[n].text if n in entries else "" for n in _SETTING)
                for again in count():  # cells that differ in something else have rows of their own
                    if names[-1] not in (own := averages.setdefault((*setting, again), {})):
                        own[names[-1]] = entries["avg"]
                        break
    if not names:
        return None
    rows, blank = [], tables.Entry(text="")
    for setting in sorted(averages, key=_place):
        heads = [tables.Entry(text=text) for text in setting[:-1]]
        rows.append([*heads, *(averages[setting].get(name, blank) for name in names)])
    columns, labels = [*_SETTING, *names], len(_SETTING)
    return tables.without_silent(
        tables.Table(title="Average scores", columns=columns, rows=rows, hue="score", labels=labels)
    )


def _place(setting: tuple[Any, ...]) -> tuple[int, float]:
    """Methods as in every legend, then budgets by their amount."""
    method, _, budget, *_ = setting
    place = ORDER.index(method) if method in ORDER else len(ORDER)
    return place, 0.0 if budget == "default" else Budget.parse(budget).value


def _facts(frame: pd.DataFrame, keys: Sequence[str]) -> dict[str, Any]:
    if frame.empty:
        return {"cells": len(keys), "rows": 0}
    times = [_minute(time) for time in frame["time"].dropna()]
    return {
        "models": frame["model"].nunique(),
        "benchmarks": frame["benchmark"].nunique(),
        "methods": frame["method"].nunique(),
        "cells": len(keys),
        "rows": len(frame),
        "failed rows": int((frame["status"] != OK).sum()),
        **({"first row": min(times), "newest row": max(times)} if times else {}),
    }


def _minute(time: str) -> str:
    return f"{time[:16].replace('T', ' ')} UTC"


def _unfinished(store: ResultStore, keys: Sequence[str]) -> list[str]:
    """A line for each cell that is not done: its state, and why."""
    found = []
    for key in keys:
        status = store.status(key)
        if status.get("state") != "done":
            names = [str(v) for v in store.cell(key)["labels"].values() if v]
            words = [key[:6], *names, f": {status.get('state')}", str(status.get("message") or "")]
            found.append(" ".join(words).strip())
    return found


def _figures(store: ResultStore, keys: Sequence[str]) -> list[tuple[str, str]]:
    """(name, data URI) of the figures for print that these rows allow."""
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        return []
    from retrobench.report.figures.draw import draw

    with tempfile.TemporaryDirectory() as folder:
        drawn = [(name, path) for name, path, _ in draw(store, Path(folder), keys=keys) if path]
        images = [(name, base64.b64encode(path.read_bytes()).decode()) for name, path in drawn]
    return [(name, f"data:image/png;base64,{image}") for name, image in images]


def _hash(script: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()


@cache
def _library() -> str:
    """Vega, Vega-Lite and Vega-Embed as one script."""
    try:
        import vl_convert
    except ImportError as error:
        raise ValueError("the report needs an extra: pip install 'retrobench[plots]'") from error
    return vl_convert.javascript_bundle().replace("</script", "<\\/script")


def _template() -> Any:
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(_HERE), autoescape=True, undefined=StrictUndefined,
        trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    return environment.get_template("page.html.j2")
