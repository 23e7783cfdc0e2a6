"""The tables of docs/hardware.md are what the models give today."""

from __future__ import annotations

import runpy
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def test_tables_are_current():
    script = runpy.run_path(str(ROOT / "scripts" / "hardware.py"))
    page = (ROOT / "docs" / "hardware.md").read_text("utf-8")
    # InstInfer's table counts pages, which takes seconds and may differ in its last digit
    for part in ("chime", "attacc"):
        assert script["table"](script[part]()) in page, f"{part} is stale: make hardware"
    for path in (ROOT / "conf" / "hardware").glob("*.yaml"):
        if path.stem != "measured":
            assert script["constants"](path.stem) in page, f"{path.stem}: make hardware"
    rows = [line for line in page.splitlines() if line.startswith("| SparF over dense")]
    assert any("the table's share of pages" in row and "-9%" in row for row in rows)
