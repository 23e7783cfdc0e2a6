"""Pictures of the docs: well-formed, shown by a page, self-contained, and what scripts draw."""

from __future__ import annotations

import re
import runpy
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest

DOCS = Path(__file__).resolve().parents[2] / "docs"
SCRIPTS = DOCS.parent / "scripts"


@pytest.mark.parametrize("picture", sorted(DOCS.glob("*.svg")), ids=lambda path: path.name)
def test_a_picture_is_whole_and_shown(picture):
    text = picture.read_text(encoding="utf-8")
    ElementTree.fromstring(text)
    assert "http" not in re.sub(r'xmlns(:\w+)?="[^"]*"', "", text)
    assert any(f"]({picture.name})" in page.read_text("utf-8") for page in DOCS.rglob("*.md"))


@pytest.mark.parametrize("picture", sorted(DOCS.glob("*.svg")), ids=lambda path: path.stem)
def test_a_picture_is_what_its_script_draws(picture, monkeypatch):
    monkeypatch.syspath_prepend(str(SCRIPTS))
    drawn = {"architecture": runpy.run_path(str(SCRIPTS / "draw_architecture.py"))["render"]}
    drawn |= runpy.run_path(str(SCRIPTS / "draw_concepts.py"))["PICTURES"]
    assert picture.read_text(encoding="utf-8") == drawn[picture.stem](), "stale: make pictures"
