"""A small data set in LongBench's layout, own texts, through load, prompt and score."""

from __future__ import annotations

import json
import zipfile

import pytest

from retrobench.engine.embedded import build_tokenizer
from retrobench.tasks.longbench.prompts import DATASETS
from retrobench.tasks.longbench.task import LongBenchConfig, LongBenchTask
from retrobench.tasks.prompt import PromptBuilder

ANSWERS = {
    "passage_count": "7",
    "passage_retrieval_en": "Paragraph 3",
    "passage_retrieval_zh": "段落3",
    "trec": "Number of something",
    "lsht": "体育",
    "lcc": "    return {value: 1}",
    "repobench-p": "x = make({1: 2})",
}


def record(name, **changes):
    language = DATASETS[name].language
    text = "湖很宽，水很冷。" if language == "zh" else "def f(): {x} # a lake, wide and cold.\n"
    answer = ANSWERS.get(name, "水很冷" if language == "zh" else "a cold lake")
    classes = [answer, "Other"] if name in {"trec", "lsht"} else None
    return {
        "input": "How is {the} lake?",
        "context": text * 40,
        "answers": [answer],
        "length": 300,
        "dataset": name,
        "language": language,
        "all_classes": classes,
        "_id": f"{name}-1",
        **changes,
    }


def write(root, name, *entries):
    folder = root / "longbench"
    folder.mkdir(exist_ok=True)
    lines = [entry if isinstance(entry, str) else json.dumps(entry) for entry in entries]
    (folder / f"{name}.jsonl").write_text("\n".join(lines), encoding="utf-8")


def samples(root, **options):
    task = LongBenchTask(LongBenchConfig(**options), str(root))
    return task, list(task.samples(PromptBuilder(build_tokenizer())))


@pytest.mark.parametrize("name", DATASETS)
def test_every_data_set_from_file_to_score(tmp_path, name):
    pytest.importorskip("rouge")
    pytest.importorskip("jieba")
    write(tmp_path, name, record(name))
    task, (sample,) = samples(tmp_path, tasks=(name,))
    expected = DATASETS[name].prompt.replace("{context}", record(name)["context"])
    assert sample.user_text == expected.replace("{input}", "How is {the} lake?")
    assert task.score(sample, sample.references[0]) == pytest.approx(1.0, abs=1e-6)
    assert task.score(sample, "") == 0.0
    assert len(task.fingerprint(PromptBuilder(build_tokenizer()))) == 16


def test_the_archive_and_long_prompts(tmp_path):
    (tmp_path / "longbench").mkdir()
    with zipfile.ZipFile(tmp_path / "longbench" / "data.zip", "w") as archive:
        entry = record("qasper", context="Start. " + "One wide lake. " * 2000 + "End.")
        archive.writestr("data/qasper_e.jsonl", json.dumps(entry))
    _, (sample,) = samples(tmp_path, tasks=("qasper",), e=True, max_prompt_tokens=600)
    encoded = PromptBuilder(build_tokenizer()).encode(sample)
    assert encoded.truncated and 590 <= encoded.num_tokens <= 602
    text = build_tokenizer().decode(encoded.ids)
    assert "Start." in text and text.endswith("Question: How is {the} lake?\n\nAnswer:")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "line 2: not JSON"),
        ("[]", "line 2: not a JSON object"),
        (record("qasper", answers=[]), "line 2: 'answers'"),
        (record("qasper", context=3), "line 2: 'context'"),
        (record("qasper", answers=[3]), "line 2: 'answers'"),
    ],
)
def test_bad_records_name_file_and_line(tmp_path, line, message):
    write(tmp_path, "qasper", record("qasper"), line)
    with pytest.raises(ValueError, match=r"qasper.jsonl") as caught:
        samples(tmp_path, tasks=("qasper",))
    assert message in str(caught.value)


def test_missing_and_half_downloaded_data(tmp_path):
    with pytest.raises(ValueError, match=r"qasper.jsonl not found in .*longbench"):
        samples(tmp_path, tasks=("qasper",))
    (tmp_path / "longbench").mkdir()
    (tmp_path / "longbench" / "data.zip").write_bytes(b"PK\x03\x04 half")
    with pytest.raises(ValueError, match="no whole zip archive"):
        samples(tmp_path, tasks=("qasper",))
