"""A leaderboard: cells of several folders, ranked by who is better at no more cost."""

from __future__ import annotations

import json

import pytest

from retrobench.cli import console
from retrobench.report.board.merge import merge
from retrobench.report.board.tables import board, ranked
from retrobench.report.headroom import load
from tests.report.conftest import Lab

COUNT = 12


@pytest.fixture
def labs(tmp_path):
    return Lab(tmp_path / "one"), Lab(tmp_path / "two")


def rows(lab, scores, mib=1.0, **more):
    return [lab.row(index=i, score=score, mib=mib, **more) for i, score in enumerate(scores)]


def test_a_cell_is_behind_those_that_are_better_for_no_more(labs, tmp_path):
    one, two = labs
    good, bad = [1.0] * COUNT, [0.0] * (COUNT - 2) + [1.0] * 2
    cells = {
        "full": one.cell("full", rows=rows(one, good, mib=10)),
        "good": one.cell("quest", budget="5%", rows=rows(one, good, mib=2)),
        "dear": two.cell("retroinfer", budget="5%", rows=rows(two, bad, mib=2.01)),
        "cheap": two.cell("retroinfer", budget="2%", rows=rows(two, bad, mib=1)),
    }
    merged = merge([str(lab.store.root) for lab in labs], tmp_path / "merged")
    assert merged.sources == {
        k: [1 if k in list(cells.values())[:2] else 2] for k in merged.sources
    }
    table = ranked(load(merged.store, None, None))
    ranks = {name: table.loc[key, "hbm.rank"] for name, key in cells.items()}
    assert ranks == {"full": 1, "good": 1, "dear": 2, "cheap": 1}
    assert table.loc[cells["dear"], "tokens.rank"] == 3  # all attend as many tokens
    assert table["pcie.rank"].isna().all()  # nothing went over the bus
    ((title, shown),) = board(merged, "hbm")
    assert title == "made_up ruler (substitute data)"
    assert list(shown["rank"]) == ["1", "1", "1", "2"]
    assert shown["method"].iloc[0] == "quest" and shown["score"].iloc[0] == "100.0 [100.0, 100.0]"


def test_few_samples_and_failures_rank_nobody_behind(labs, tmp_path):
    one, _ = labs
    one.cell("full", rows=rows(one, [1.0] * 3))
    one.cell("quest", rows=rows(one, [0.0] * 3))
    failing = [one.row(index=i, score=1.0) for i in range(2)]
    failing.append({**one.row(index=2), "status": "oom", "score": None})
    broken = one.cell("random", rows=failing)
    one.cell("streaming", rows=[{**row, "status": "oom", "score": None} for row in failing])
    merged = merge([str(one.store.root)], tmp_path / "merged")
    table = ranked(load(merged.store, None, None))
    assert set(table["tokens.rank"].dropna()) == {1.0} and table.loc[broken, "failed"] == 1
    ((_, shown),) = board(merged, "hbm")
    silent = shown.set_index("method").loc["streaming", ["rank", "score", "samples", "flags"]]
    assert silent.tolist() == ["-", "-", "0", "3 failed samples"]
    ((_, shown),) = board(merged, "tokens")
    assert shown.set_index("method").loc["random", ["rank", "flags"]].tolist() == [
        "-",
        "1 failed sample",
    ]


def test_a_group_in_which_nothing_was_answered_is_shown(labs, tmp_path):
    one, _ = labs
    one.cell("full", rows=rows(one, [1.0] * 3))
    lost = [{**row, "status": "oom", "score": None} for row in rows(one, [0.0] * 3)]
    one.cell("quest", rows=lost, labels={"protocol": "decode_tail:8"})
    merged = merge([str(one.store.root)], tmp_path / "merged")
    shown = {title: table for title, table in board(merged, "hbm")}
    (title,) = (title for title in shown if "decode_tail" in title)
    assert shown[title][["rank", "score", "flags"]].iloc[0].tolist() == [
        "-", "-", "3 failed samples",
    ]  # fmt: skip


def test_what_speaks_against_a_cell_is_said(labs, tmp_path, capsys):
    one, two = labs
    scores = [1.0] * COUNT
    same = one.cell("full", rows=rows(one, scores))
    assert two.cell("full", rows=rows(two, [0.0, *scores[1:]])) == same
    other = two.cell("quest", rows=rows(two, scores), code="0" * 16)
    (two.store.root / other / "verify.json").write_text(
        json.dumps({"verdict": "identical", "samples": ["a", "b"]})
    )
    damaged = one.cell("random", rows=rows(one, scores))
    path = one.store.root / damaged / "rows.jsonl"
    path.write_text(path.read_text().replace('"score": 1.0', '"score": 0.5', 1))
    folders = [str(lab.store.root) for lab in labs]
    merged = merge(folders, tmp_path / "merged")
    assert merged.sources[same] == [1, 2] and merged.flags[same] == ["1 score not confirmed"]
    assert merged.flags[other] == ["other code than here"]
    assert merged.verified[other] == "identical (2)"
    assert merged.flags[damaged] == ["1 damaged row left out"]
    assert any(damaged in line for line in merged.problems)

    page = tmp_path / "page.html"
    kept = tmp_path / "kept"
    with pytest.raises(ValueError, match="holds cells already"):
        merge(folders, tmp_path / "merged")
    code = console.main(["board", *folders, "--out", str(page), "--merge", str(kept)])
    out = capsys.readouterr()
    assert code == 1 and "source 2:" in out.out and "damaged line" in out.err
    text = page.read_text()
    assert "Leaderboard: made_up ruler" in text and "1 score not confirmed" in text
    assert console.main(["board", str(kept)]) in (0, 1)


def test_bad_questions_are_answered(tmp_path, capsys):
    for arguments in (["nowhere"], [str(tmp_path)], [str(tmp_path), "--axis", "tokns"]):
        with pytest.raises(SystemExit):
            console.main(["board", *arguments])
    error = capsys.readouterr().err
    assert "nowhere: no such folder" in error and "no cells there" in error
    assert "did you mean" in error


def test_a_cell_that_was_compared_shows_recall_and_error(labs, tmp_path):
    one, _ = labs
    compared = {"fidelity": {"mean": {"recall": 0.9, "error": 0.05}}}
    one.cell("quest", rows=rows(one, [1.0, 1.0], **compared) + [one.row(index=2)])
    one.cell("full", rows=rows(one, [1.0] * 3))
    ((_, shown),) = board(merge([str(one.store.root)], tmp_path / "merged"), "hbm")
    shown = shown.set_index("method")
    assert list(shown.loc["quest", ["recall", "output error"]]) == ["0.900", "0.050"]
    assert list(shown.loc["full", ["recall", "output error"]]) == ["", ""]
