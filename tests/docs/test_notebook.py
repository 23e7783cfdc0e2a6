"""The notebook of docs/read_results.md runs to its end, on rows of the constructed model."""

from pathlib import Path

import pytest

import retrobench
from tests.e2e.runs import sweep

NOTEBOOK = Path(__file__).resolve().parents[2] / "docs" / "results.ipynb"
TASK = {"name": "niah", "length": 512, "depths": 2, "samples": 1}


def test_the_notebook_runs(tmp_path):
    nbformat, nbclient = map(pytest.importorskip, ("nbformat", "nbclient"))
    pytest.importorskip("ipykernel")
    pytest.importorskip("altair")
    results = tmp_path / "results" / "runs"
    outcomes = sweep(results, [{"name": "full"}, {"name": "random"}], task=TASK)
    assert [outcome["ran"] for outcome in outcomes] == [2, 2]
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    assert not any(cell.get("outputs") for cell in notebook.cells)  # made anew by every reader
    nbclient.NotebookClient(
        notebook, timeout=600, resources={"metadata": {"path": str(tmp_path)}}
    ).execute()
    shown = [
        out.get("data", {}).get("text/plain", "") + out.get("text", "")
        for cell in notebook.cells
        for out in cell.get("outputs", ())
    ]
    text = "\n".join(shown)
    assert "full" in text and "random" in text and "special magic" in text and "100.0" in text


def test_a_folder_that_is_not_there_is_named(tmp_path):
    with pytest.raises(ValueError, match="nothing: no such folder"):
        retrobench.load(tmp_path / "nothing")
