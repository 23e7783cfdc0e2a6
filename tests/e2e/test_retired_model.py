"""Rows of a retired model (``retired/``: two cells as they were written) stay readable."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from retrobench.cli import console
from retrobench.cli.overrides import prepare
from retrobench.store.results import ResultStore

ROOT = Path(__file__).resolve().parents[2]
FULL, RETROINFER = "88c36d75b6b56e82", "e7fc3d37bc1c7b68"


@pytest.fixture
def results(tmp_path):
    return Path(shutil.copytree(Path(__file__).parent / "retired", tmp_path / "runs"))


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["ls"], "tiny retroinfer ruler"),
        (["table"], "│ 100.0 │ 100.0 │"),  # qa_1, which nobody asked it, is not averaged
        (["show", RETROINFER], '"source": "tiny"'),
        (["diff", FULL, RETROINFER], "retroinfer"),
        (["effects"], "method"),
        (["export", "--out", "OUT.csv"], ""),
        (["audit"], "2 cells agree"),
        (["report", "--out", "OUT.html"], "written"),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_every_command_reads_its_rows(arguments, words, results, tmp_path, capsys):
    given = [argument.replace("OUT", str(tmp_path / "out")) for argument in arguments]
    assert console.main([*given, "--results", str(results)]) == 0
    assert words in capsys.readouterr().out
    for file in tmp_path.glob("out.*"):
        assert "tiny" in file.read_text()


def test_figures_draw_its_rows(results, tmp_path):
    pytest.importorskip("matplotlib")
    from retrobench.report.figures.draw import draw

    ((name, path, reason),) = draw(ResultStore(results), tmp_path, ["ruler_scores"])
    assert path is not None and path.exists(), (name, reason)


@pytest.mark.parametrize("command", ["retry", "verify"])
def test_running_it_again_says_what_to_use(command, results, capsys):
    with pytest.raises(SystemExit):
        console.main([command, RETROINFER, "--results", str(results)])
    words = capsys.readouterr().err
    assert "model.source=tiny: this model was retired" in words
    assert "model=smollm2" in words and "model=constructed" in words


def test_asking_for_it_says_what_to_use():
    with pytest.raises(ValueError, match=r"model=tiny: this model was retired.*retrobench fetch"):
        prepare(["model=tiny", "method=full"], ROOT / "conf")
