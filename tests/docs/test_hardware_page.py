"""The tables of docs/hardware.md are what the models give today."""

from __future__ import annotations

import runpy
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
QUICK = ("chime", "attacc", "constants")  # the others count pages or replay requests


def test_tables_are_current():
    script = runpy.run_path(str(ROOT / "scripts" / "hardware.py"))
    page = (ROOT / "docs" / "hardware.md").read_text("utf-8")
    for part in QUICK:
        assert script["PARTS"][part]() in page, f"{part} is stale: make hardware"
    rows = [line for line in page.splitlines() if line.startswith("| SparF over dense")]
    assert any("the table's share of pages" in row and "+1%" in row for row in rows)
