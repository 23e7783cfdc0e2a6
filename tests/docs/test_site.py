"""The documentation site: it builds without a warning, and loads nothing from a network."""

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
LINKED = re.compile(r'<(?:script|link|img|iframe)\b[^>]*?(?:src|href)="?((?:https?:)?//[^">\s]+)')
STYLES = re.compile(r"(?:url\(|@import\s+)[\"']?((?:https?:)?//[^\"')\s]+)")


def pages_in_nav(entries):
    """Files of a ``nav``, in their order."""
    for entry in entries:
        for value in entry.values():
            yield from [value] if isinstance(value, str) else pages_in_nav(value)


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    if importlib.util.find_spec("material") is None:
        pytest.skip("mkdocs-material is not installed: pip install -e '.[dev]'")
    out = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(out)]
    done = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, env={**os.environ, "NO_COLOR": "1"}
    )
    assert done.returncode == 0, done.stderr
    return out


def test_every_page_is_built_and_found_from_the_navigation(site):
    import yaml

    nav = list(pages_in_nav(yaml.safe_load((ROOT / "mkdocs.yml").read_text())["nav"]))
    assert len(nav) == len(set(nav))
    written = {path.name for path in (ROOT / "docs").glob("*.md")}
    assert written <= set(nav), "add the page to nav in mkdocs.yml"
    for name in nav:
        page = (site / name).with_suffix(".html").read_text(encoding="utf-8")
        assert "<h1" in page, name
        assert not re.search(r"<(p|li)>(python (run|scripts)|pip install|srun)", page), (
            f"{name}: a lost code block"
        )


def test_nothing_is_loaded_from_a_network(site):
    for path in site.rglob("*.html"):
        found = LINKED.findall(path.read_text(encoding="utf-8"))
        assert not found, path
    for path in site.rglob("*.css"):
        assert not STYLES.findall(path.read_text(encoding="utf-8")), path


def test_the_checks_find_what_they_are_for():
    assert LINKED.findall('<script src="https://cdn.example/x.js">')
    assert LINKED.findall('<link rel="stylesheet" href="//fonts.example/css">')
    assert not LINKED.findall('<a href="https://example.org">')
    assert STYLES.findall("@import 'https://x.example/a.css'") == ["https://x.example/a.css"]


def test_the_site_is_not_tracked():
    done = subprocess.run(["git", "check-ignore", "site/index.html"], cwd=ROOT, capture_output=True)
    if not (ROOT / ".git").exists():
        pytest.skip("not a checkout")
    assert done.returncode == 0
