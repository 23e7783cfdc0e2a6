"""Pictures of the docs are what their scripts draw."""

from __future__ import annotations

import importlib.util
import xml.etree.ElementTree as ElementTree
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def load(name):
    """A script as a module."""
    spec = importlib.util.spec_from_file_location(name, ROOT / "scripts" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_architecture_is_what_its_script_draws():
    drawn = load("draw_architecture").render()
    assert (ROOT / "docs" / "architecture.svg").read_text() == drawn, (
        "docs/architecture.svg is stale: run python scripts/draw_architecture.py"
    )
    ElementTree.fromstring(drawn)
    assert "http" not in drawn.replace("http://www.w3.org/2000/svg", "")  # nothing is loaded
