"""Files that commands write: where they cannot be written, and what a spreadsheet makes of them."""

from __future__ import annotations

import csv

import pandas as pd
import pytest

from retrobench.cli import console
from retrobench.report.export import without_formulas


@pytest.mark.parametrize("command", [["export"], ["report"]])
@pytest.mark.parametrize("place", ["/dev/null/x/{}", "/proc/x/{}", "{folder}"])
def test_a_file_that_cannot_be_written_is_refused_in_one_line(tmp_path, capsys, command, place):
    folder = tmp_path / "rows.csv"
    folder.mkdir()
    out = place.format("rows.csv", folder=folder)
    with pytest.raises(SystemExit, match="2"):
        console.main([*command, "--results", str(tmp_path), "--out", out])
    error = capsys.readouterr().err
    assert f"error: --out {out}: cannot be written" in error and error.count("\n") == 1


def test_scores_are_not_written_to_a_folder_and_not_read_from_one(tmp_path, capsys):
    cases = tmp_path / "cases.jsonl"
    cases.write_text("")
    for arguments in ([str(cases), "--out", str(tmp_path)], [str(tmp_path)]):
        with pytest.raises(SystemExit, match="2"):
            console.main(["score", *arguments])
        error = capsys.readouterr().err
        assert error.startswith("error: ") and str(tmp_path) in error and error.count("\n") == 1


def test_texts_are_no_formulas_in_csv_and_numbers_stay_numbers(tmp_path):
    texts = ["=1+1", "+cmd|' /C calc'!A0", "-2+3", "@SUM(A1)", "\tx", "-0.5", "plain", None]
    frame = pd.DataFrame({"=head": texts, "number": [-1.5, 2, -3, 4, 5, 6, 7, 8]})
    path = tmp_path / "rows.csv"
    without_formulas(frame).to_csv(path, index=False)
    with path.open(newline="") as stream:
        head, *rows = list(csv.reader(stream))
    assert head == ["'=head", "number"]
    assert [row[0] for row in rows] == [*(f"'{text}" for text in texts[:5]), "-0.5", "plain", ""]
    assert [float(row[1]) for row in rows] == list(frame["number"])
    assert list(frame["=head"])[:2] == texts[:2]


def test_parquet_holds_the_rows_and_no_copy_of_its_schema(tmp_path):
    import pyarrow.parquet as pq

    from retrobench.report.export import write_parquet

    frame = pd.DataFrame({"key": ["a", "b"], "score": [0.25, float("nan")], "n": [1, 2]})
    write_parquet(frame, tmp_path / "rows.parquet")
    pd.testing.assert_frame_equal(pd.read_parquet(tmp_path / "rows.parquet"), frame)
    assert pq.read_metadata(tmp_path / "rows.parquet").metadata is None


def test_a_figures_files_say_what_they_show_and_are_the_same_each_time(tmp_path):
    from PIL import Image

    from retrobench.report.figures import style

    for name in ("one", "two"):
        drawing, (axes,) = style.figure(2.0)
        axes.plot([0, 1], [0, 1], color=style.COLORS[1])
        style.save(drawing, tmp_path / f"{name}.png", "title", "cells of ä")
    assert (tmp_path / "one.png").read_bytes() == (tmp_path / "two.png").read_bytes()
    assert (tmp_path / "one.pdf").read_bytes() == (tmp_path / "two.pdf").read_bytes()
    with Image.open(tmp_path / "one.png") as image:
        assert image.text == {"Title": "title", "Comment": "cells of ä"} and image.mode == "P"
