"""What the pages name is there: links and their headings, files, experiments, commands, options."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from retrobench.cli import console

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "results/README.md")]
PAGES += sorted((ROOT / "docs").rglob("*.md"))
FOLDERS = "conf|docs|kernels|methods|scripts|src|tests|results/published"
OPTIONS = set(
    re.findall(r"^\| `([\w.]+)`", (ROOT / "docs" / "options.md").read_text("utf-8"), re.M)
)
# what a reader of add_a_method.md and add_a_benchmark.md writes
EXAMPLES = {"conf/method/snapkv_example.yaml", "methods/retrobench_methods/snapkv_example.py"}
EXAMPLES |= {"conf/task/documents.yaml", "src/retrobench/tasks/documents.py"}
EXAMPLE_OPTIONS = {"task.file"}

pages = pytest.mark.parametrize("page", PAGES, ids=lambda path: str(path.relative_to(ROOT)))


def headings(text):
    """Names that links may have behind ``#``."""
    lines = re.findall(r"^#+ (.*)", text, re.M)
    return {re.sub(r"[^\w -]", "", line).strip().lower().replace(" ", "-") for line in lines}


@pages
def test_links_lead_somewhere(page):
    for link in re.findall(r"\]\(([^)\s]+)\)", page.read_text("utf-8")):
        name, _, heading = link.partition("#")
        target = page.parent / name if name else page
        if not name.startswith("http"):
            assert target.exists(), link
            assert not heading or heading in headings(target.read_text("utf-8")), link


@pages
def test_files_and_experiments_are_there(page):
    text = page.read_text("utf-8")
    for path in re.findall(rf"(?<![\w./-])(?:{FOLDERS})/[\w./-]*", text):
        assert path in EXAMPLES or (ROOT / path.rstrip(".")).exists(), path
    for name in re.findall(r"experiment=(\w+)(?!\w|\.\.)", text):
        assert (ROOT / "conf" / "experiment" / f"{name}.yaml").exists(), name


@pages
def test_commands_and_options_are_known(page, capsys):
    text = page.read_text("utf-8")
    for command in set(re.findall(r"(?:^ +|`)retrobench ([a-z]\w*)", text, re.M)):
        with pytest.raises(SystemExit) as end:
            console.main([command, "--help"])
        assert end.value.code == 0, capsys.readouterr().err
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text("utf-8"), re.M))
    targets |= {f"published-{path.stem}" for path in (ROOT / "conf/experiment").glob("*.yaml")}
    targets.add("published-NAME")
    assert set(re.findall(r"(?:^ +|`)make ([\w-]+)", text, re.M)) <= targets
    groups = "model|engine|method|task|measure|protocol|prefill"
    found = set(re.findall(rf"(?<![\w.])(?:{groups})\.[a-z_]+(?==)", text))
    found -= EXAMPLE_OPTIONS if page.stem == "add_a_benchmark" else set()
    assert found <= OPTIONS, found - OPTIONS
