"""A sweep as one HTML file with tables, significance, figures, provenance; loads nothing else."""

import base64
import tempfile
from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import Any

import pandas as pd

from retrobench.report.checks.significance import significance
from retrobench.report.figures.draw import draw
from retrobench.report.headroom import load
from retrobench.report.tables.cost import cost_matrix
from retrobench.report.tables.overview import COLUMNS
from retrobench.report.tables.scores import caption, score_matrix
from retrobench.store.results import ResultStore

_STYLE = """
body { font: 15px/1.45 system-ui, sans-serif; margin: 2rem auto; max-width: 72rem; padding: 0 1rem;
  color: #1a1a1a; background: #fff; }
h1 { font-size: 1.5rem; } h2 { font-size: 1.15rem; margin-top: 2rem; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-size: 13px; font-variant-numeric: tabular-nums; }
th, td { padding: .25rem .6rem; text-align: right; border-bottom: 1px solid #ddd;
  white-space: nowrap; }
th:first-child, td:first-child { text-align: left; }
figure { margin: 1rem 0; } img { max-width: 100%; height: auto; }
figcaption, .note { color: #555; font-size: 13px; white-space: pre-line; }
.alarm { color: #a11; font-weight: 600; }
code { font-size: 12px; }
"""


def write_report(store: ResultStore, keys: Sequence[str], title: str, path: Path) -> Path:
    """Write the report of some cells to ``path``."""
    frame = load(store, COLUMNS, keys)
    if frame.empty:
        raise ValueError(f"{title}: no rows yet in {store.root}")
    parts = [f"<h1>{escape(title)}</h1>", f'<p class="note">{escape(caption(frame))}</p>']
    parts += _section("Scores (x100)", _table(score_matrix(frame)))
    parts += _section("Cost (medians)", _table(cost_matrix(frame)))
    parts += _section("Significance (paired)", "".join(map(_line, significance(frame))))
    drawn, missing = _figures(store, keys)
    parts += _section("Figures", "".join(drawn))
    parts += _section("Figures that these rows do not allow", "".join(map(_line, missing)))
    parts += _section("Cells", _table(_cells(store, keys)))
    parts += _section("Provenance", _table(_provenance(store, keys)))
    page = (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title><style>{_STYLE}</style></head>"
        f"<body>{''.join(parts)}</body></html>\n"
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(page, encoding="utf-8")
    return path


def _section(title: str, body: str) -> list[str]:
    return [f"<h2>{escape(title)}</h2>", body] if body else []


def _line(text: str) -> str:
    kind = "alarm" if "ALARM" in text else "note"
    return f'<p class="{kind}">{escape(text)}</p>'


def _table(frame: pd.DataFrame) -> str:
    if frame.empty:
        return ""
    text = frame.fillna("").to_html(index=False, border=0, escape=True)
    return f'<div class="scroll">{text}</div>'


def _figures(store: ResultStore, keys: Sequence[str]) -> tuple[list[str], list[str]]:
    shown, missing = [], []
    with tempfile.TemporaryDirectory() as folder:
        for name, path, reason in draw(store, Path(folder), keys=keys):
            if path is None:
                missing.append(f"{name}: {reason}")
                continue
            image = base64.b64encode(path.read_bytes()).decode()
            shown.append(
                f'<figure><img alt="{escape(name)}" src="data:image/png;base64,{image}">'
                f"<figcaption>{escape(name)}</figcaption></figure>"
            )
    return shown, missing


def _cells(store: ResultStore, keys: Sequence[str]) -> pd.DataFrame:
    cells = store.cells()
    return cells[cells["key"].isin(list(keys))].dropna(axis=1, how="all")


def _provenance(store: ResultStore, keys: Sequence[str]) -> pd.DataFrame:
    found: dict[str, dict[str, Any]] = {}
    for key in keys:
        about = store.cell(key)["provenance"]
        versions = " ".join(f"{k} {v}" for k, v in about.get("versions", {}).items())
        line = {name: about.get(name) for name in ("cpu", "cores", "gpu", "python")}
        line |= {"versions": versions, "commit": str(about.get("commit"))[:12]}
        line |= {"uncommitted changes": about.get("dirty")}
        found.setdefault(str(line), line)
    return pd.DataFrame(list(found.values()))
