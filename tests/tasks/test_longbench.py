"""The project's own LongBench-shaped data through load, prompt, model, score and averages."""

from __future__ import annotations

import json
import zipfile

import pytest

from retrobench.engine.embedded import build_tokenizer
from retrobench.report.benchmarks import averages
from retrobench.store.results import ResultStore
from retrobench.tasks.longbench import averages as longbench_averages
from retrobench.tasks.longbench.prompts import DATASETS, E_DATASETS
from retrobench.tasks.longbench.task import LongBenchConfig, LongBenchTask
from retrobench.tasks.longbench.v2 import LongBenchV2Config, LongBenchV2Task
from retrobench.tasks.prompt import PromptBuilder
from tests import benchmarks, small_longbench
from tests.benchmarks import RANDOM


def record(name, **changes):
    return {**small_longbench.records(name, 1, 8)[0], **changes}


def write(root, name, *entries):
    folder = root / "longbench"
    folder.mkdir(exist_ok=True)
    lines = [entry if isinstance(entry, str) else json.dumps(entry) for entry in entries]
    (folder / f"{name}.jsonl").write_text("\n".join(lines), encoding="utf-8")


def samples(root, **options):
    task = LongBenchTask(LongBenchConfig(**options), str(root))
    return task, list(task.samples(PromptBuilder(build_tokenizer())))


def run(root, results, task, model=RANDOM):
    outcome, _ = benchmarks.run(root, results, task, model=model)
    return outcome, ResultStore(results)


@pytest.mark.parametrize("name", DATASETS)
def test_every_data_set_from_file_to_score(tmp_path, name):
    pytest.importorskip("jieba")
    odd = {"input": "How is {the} lake?", "context": "{x} 湖 {context}"}
    write(tmp_path, name, record(name, **odd))
    task, (sample,) = samples(tmp_path, tasks=(name,))
    expected = DATASETS[name].prompt.replace("{context}", "\0").replace("{input}", odd["input"])
    assert sample.user_text == expected.replace("\0", odd["context"])
    for reference in sample.references:
        assert task.score(sample, reference) == pytest.approx(1.0, abs=1e-6)
    assert task.score(sample, "") == 0.0
    assert len(task.fingerprint(PromptBuilder(build_tokenizer()))) == 16


@pytest.mark.slow
def test_the_whole_small_set_through_a_model(tmp_path):
    pytest.importorskip("jieba")
    small_longbench.write(tmp_path, count=1, size=6)
    task = {"name": "longbench", "max_prompt_tokens": 500}
    outcome, store = run(tmp_path, tmp_path / "r", task)
    rows = store.read(outcome["key"]).rows.values()
    assert outcome["failed"] == {} and {row["task"] for row in rows} == set(DATASETS)
    assert all(row["status"] == "ok" and 0 <= row["score"] <= 1 for row in rows)
    tables = dict(averages(store.columns()))
    assert list(tables["LongBench averages"]["language"]) == ["en", "zh"]
    assert "-" not in set(tables["LongBench averages"]["overall"])


def test_bad_records_become_error_rows_and_the_others_are_scored(tmp_path):
    longer = record("qasper", context="The lake is wide. " * 400)
    bad = {
        "{": "not JSON",
        "[]": "not a JSON object",
        json.dumps(record("qasper", answers=[])): "'answers'",
        json.dumps(record("qasper", answers=[3])): "'answers'",
        json.dumps(record("qasper", context=3)): "'context'",
        json.dumps(record("qasper", dataset="musique")): "a record of 'musique'",
        json.dumps(record("qasper", language="zh")): "language 'zh' where 'qasper' has 'en'",
    }
    write(tmp_path, "qasper", record("qasper"), *bad, json.dumps(longer))
    task = {"name": "longbench", "tasks": ["qasper"], "max_prompt_tokens": 2000}
    outcome, store = run(tmp_path, tmp_path / "r", task)
    assert outcome["failed"] == {"error": len(bad)}
    rows = store.read(outcome["key"]).rows
    for number, words in enumerate(bad.values(), 2):
        message = rows[f"qasper/line-{number}"]["message"]
        assert f"qasper.jsonl line {number}: {words}" in message
    good = [row for row in rows.values() if row["status"] == "ok"]
    assert len(good) == 2 and {row["truncated"] for row in good} == {False, True}


def test_a_line_of_ten_megabytes(tmp_path):
    text = "The lake is wide. " * 600_000
    write(tmp_path, "qasper", json.dumps(record("qasper", context=text)), "{" + text)
    _, (good, bad) = samples(tmp_path, tasks=("qasper",))
    assert text in good.context and not good.error
    assert "qasper.jsonl line 2: not JSON" in bad.error and len(bad.error) < 500


@pytest.mark.parametrize(
    ("name", "changes", "words"),
    [
        ("trec", {"all_classes": None}, "'all_classes'"),
        ("passage_retrieval_zh", {"answers": ["3"]}, "name a paragraph"),
        ("lcc", {"language": "zh"}, "language 'zh'"),
        ("multifieldqa_zh", {"language": "en"}, "language 'en'"),
        *(("lcc", {"length": length}, "'length'") for length in ([[]], 1e400, {"a": 1}, "x")),
    ],
)
def test_records_of_the_wrong_kind(tmp_path, name, changes, words):
    write(tmp_path, name, record(name, **changes))
    _, (sample,) = samples(tmp_path, tasks=(name,))
    assert words in sample.error


def test_the_archive_and_long_prompts(tmp_path):
    (tmp_path / "longbench").mkdir()
    path = tmp_path / "longbench" / "data.zip"
    with zipfile.ZipFile(path, "w") as archive:
        entry = record("qasper_e", context="Start. " + "One wide lake. " * 2000 + "End.")
        archive.writestr("data/qasper_e.jsonl", json.dumps(entry))
    options = {"tasks": ("qasper",), "e": True, "max_prompt_tokens": 600}
    task, (sample,) = samples(tmp_path, **options)
    encoded = PromptBuilder(build_tokenizer()).encode(sample)
    assert encoded.truncated and 590 <= encoded.num_tokens <= 602
    text = build_tokenizer().decode(encoded.ids)
    assert "Start." in text and text.endswith(sample.question)
    tail = build_tokenizer().decode(encoded.ids[encoded.context_tokens :])
    assert tail == sample.question
    whole = path.read_bytes()
    for damaged in (whole[:200], b"PK\x03\x04 half"):
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match="no whole zip archive"):
            samples(tmp_path, **options)
        with pytest.raises(ValueError, match=r"data.zip.*retrobench fetch longbench"):
            task.fingerprint(PromptBuilder(build_tokenizer()))


def test_missing_data_names_file_folder_and_command(tmp_path):
    message = r"qasper.jsonl not found in .*longbench.*retrobench fetch longbench"
    with pytest.raises(ValueError, match=message):
        samples(tmp_path, tasks=("qasper",))
    write(tmp_path, "qasper", "version https://git-lfs.github.com/spec/v1")
    with pytest.raises(ValueError, match="git-lfs pointer"):
        samples(tmp_path, tasks=("qasper",))


def v2(root, **options):
    task = LongBenchV2Task(LongBenchV2Config(**options), str(root))
    return task, list(task.samples(PromptBuilder(build_tokenizer())))


def test_longbench_v2(tmp_path):
    records = small_longbench.records_v2(6, 5)
    records[0]["context"] = " $Q$ and $C_B$ \n"
    folder = tmp_path / "longbench_v2"
    folder.mkdir()
    (folder / "data.json").write_text(json.dumps(records))
    task, found = v2(tmp_path)
    first, asked = records[0], records[0]["question"]
    expected = (
        "Please read the following text and answer the question below.\n\n<text>\n"
        f"{asked} and {first['choice_B']}\n</text>\n\n"
        f"What is the correct answer to this question: {asked}\nChoices:\n(A) {first['choice_A']}\n"
        f"(B) {first['choice_B']}\n(C) {first['choice_C']}\n(D) {first['choice_D']}\n\n"
        'Format your response as follows: "The correct answer is (insert answer here)".'
    )
    assert found[0].user_text == expected
    assert task.score(found[0], f"The correct answer is ({first['answer']}).") == 1
    assert task.score(found[0], first["answer"]) == 0
    assert [s.meta["length_class"] for s in v2(tmp_path, lengths=("short",))[1]] == ["short"] * 2
    assert len(v2(tmp_path, difficulty=("hard",), samples=2)[1]) == 2
    (folder / "data.jsonl").write_text("\n".join([json.dumps(first), "{}", '{"_id": "x"']))
    _, (good, *bad) = v2(tmp_path)
    assert good.error == "" and ["line 2" in bad[0].error, "line 3" in bad[1].error] == [True, True]


def test_longbench_v2_keeps_both_ends_and_its_splits(tmp_path):
    small_longbench.write(tmp_path, count=1, size=300)
    task = {"name": "longbench_v2", "max_prompt_tokens": 601}
    outcome, store = run(tmp_path, tmp_path / "r", task)
    rows = store.read(outcome["key"]).rows.values()
    assert all(row["truncated"] and 595 <= row["prompt_tokens"] <= 603 for row in rows)
    ((_, table),) = averages(store.columns())
    assert list(table.columns[2:]) == ["overall", "easy", "hard", "short", "medium", "long"]


def test_official_averages():
    import pandas as pd

    rows = []
    for number, name in enumerate(DATASETS):
        row = {"key": "k" * 16, "method": "full", "benchmark": "longbench", "task": name}
        rows.append({**row, "status": "ok", "score": number / 100, "meta.e": False})
    table = longbench_averages.longbench(pd.DataFrame(rows)).set_index("language")
    scores = {name: number for number, name in enumerate(DATASETS)}
    sqa = (scores["narrativeqa"] + scores["qasper"] + scores["multifieldqa_en"]) / 3
    assert table.loc["en", "SQA"] == f"{sqa:.2f}"
    parts = [float(table.loc["en", name]) for name in ("SQA", "MQA", "SUM", "FSL", "ST", "CC")]
    assert float(table.loc["en", "overall"]) == pytest.approx(sum(parts) / 6, abs=0.01)
    assert table.loc["zh", "MQA"] == f"{scores['dureader']:.2f}"
    for status in ("oom", "ok"):  # an answer may also be measured and not scored
        rows[0] |= {"status": status, "score": None}
        table = longbench_averages.longbench(pd.DataFrame(rows)).set_index("language")
        assert (table.loc["en", "SQA"], table.loc["en", "overall"]) == ("-", "-")
    balanced = []
    for words, score in ((100, 0.5), (5000, 0.25), (9000, 1.0), (8000, 0.0)):
        row = {**rows[1], "task": E_DATASETS[0], "score": score}
        balanced.append({**row, "meta.words": words, "meta.e": True})
    table = longbench_averages.longbench_bins(pd.DataFrame(balanced))
    assert list(table.iloc[0, 3:]) == ["50.00", "25.00", "50.00"]
