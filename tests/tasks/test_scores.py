"""Scores are the official ones: golden cases, the packages that define them, odd inputs."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest

from retrobench.tasks.scorers import longbench, longbench_v2
from retrobench.tasks.scorers.rouge_l import rouge_l
from retrobench.tasks.scoring import score_case, score_file

GOLDENS = Path(__file__).parent / "goldens"


@pytest.mark.parametrize(
    "benchmark", ["ruler", "longbench", "babilong", "infinitebench", "scbench"]
)
def test_golden_scores(benchmark):
    if benchmark == "longbench":
        pytest.importorskip("jieba")
    tolerance = 5e-5 if benchmark == "ruler" else 1e-9
    lines = (GOLDENS / f"{benchmark}.jsonl").read_text("utf-8").splitlines()
    assert len(lines) > 30
    for line in lines:
        case = json.loads(line)
        assert abs(score_case(case) - case["score"]) <= tolerance, case["id"]


def test_golden_choices_of_longbench_v2(tmp_path):
    path = GOLDENS / "longbench_v2.jsonl"
    cases = [json.loads(line) for line in path.read_text("utf-8").splitlines()]
    for case in cases:
        assert longbench_v2.choice(case["response"]) == case["pred"], case["id"]
    report = score_file(path, tmp_path / "out.jsonl")
    assert report.errors == [] and report.max_difference == 0
    assert longbench_v2.choice("The correct answer is Apple") == "A"  # as the official pattern
    case = {"benchmark": "longbench_v2", "prediction": "The correct answer is *B*"}
    assert score_case({**case, "references": ["B"]}) == 1


def _text(rng: random.Random) -> str:
    words = [".", "..", " ", "\n", "a", "b", "a.", "b c", "\u3000", "…", *"abcdef"]
    return rng.choice([" ", "", ". "]).join(rng.choices(words, k=rng.randrange(25)))


def test_rouge_equals_the_package():
    package = pytest.importorskip("rouge").Rouge()
    rng = random.Random(3)
    for _ in range(400):
        ours, gold = _text(rng), _text(rng)
        try:
            expected = package.get_scores([ours], [gold], avg=True)["rouge-l"]["f"]
        except ValueError:
            expected = 0.0
        assert rouge_l(ours, gold) == expected, (ours, gold)


def test_rouge_stops_where_the_official_stack_does_whoever_calls():
    def deep(depth, words):
        if depth:
            return deep(depth - 1, words)
        return rouge_l(words, words)

    for depth in (0, 200):
        assert deep(depth, " ".join(["w"] * 990)) > 0.99
        assert deep(depth, " ".join(["w"] * 991)) == 0
    # One overflowing pair of sentences spoils the text, and a walk is not only matches.
    assert rouge_l("w " * 991 + ". w", "w " * 991 + ". w") == 0
    assert rouge_l("w" + " x" * 600, "w" + " y" * 600) == 0
    assert rouge_l("w" + " x" * 400, "w" + " y" * 400) > 0


def test_chinese_rouge_is_one_call_deeper():
    pytest.importorskip("jieba")
    assert longbench.rouge_zh("w " * 989, "w " * 989) > 0.99
    assert longbench.rouge_zh("w " * 990, "w " * 990) == 0


@pytest.mark.parametrize(
    ("prediction", "gold", "expected"),
    [
        ("", "", 1.0),  # equal comes before empty
        ("\n\n# only a comment\n", "", 1.0),
        ("", "x = 1", 0.0),
        ("```python\nx = 1\n```", "x = 1", 1.0),
        ("// a\n\nx = 1", "x = 1", 0.0),  # the blank line is the answer
        ("\n\nx = 1", "x = 1", 1.0),
        ("    x = 1", "x = 1", 0.71),
        ("y" + "x" * 300, "z" + "x" * 300, 0.0),  # autojunk
    ],
)
def test_code_lines(prediction, gold, expected):
    assert longbench.code_sim(prediction, gold) == expected


def test_the_classification_loop_skips():
    classes = ["Date", "Date of birth", "birth", "of"]
    score = longbench.classification
    assert score("Date of birth", "Date of birth", classes) == 0.5
    assert score("Date of birth", "Date", classes) == 0.25
    assert score("date of birth", "Date", classes) == 0
    assert classes == ["Date", "Date of birth", "birth", "of"]


@pytest.mark.parametrize(
    ("task", "prediction", "references", "expected"),
    [
        ("trec", "\n\nDate\nPlace", ["Date"], 1.0),
        ("trec", " \nDate", ["Date"], 0.0),  # only newlines are skipped
        ("triviaqa", "\nthe lake\nanother", ["A Lake!"], 1.0),
        ("qasper", "the lake\nanother", ["A Lake!", "x"], 2 / 3),
        ("qasper", "the", ["an"], 0.0),
        ("passage_retrieval_en", "Paragraph 3, or 3 or 15", ["Paragraph 3"], 2 / 3),
        ("passage_retrieval_en", "015", ["Paragraph 15"], 0.0),
        ("passage_count", "There are 7.5", ["7"], 0.5),
        ("passage_count", "", ["7"], 0.0),
    ],
)
def test_odd_answers(task, prediction, references, expected):
    classes = ["Date", "Place"]
    assert longbench.score(task, prediction, references, classes) == pytest.approx(expected)


def test_score_file_reports_bad_lines_and_scores_the_rest(tmp_path):
    good = {"benchmark": "ruler", "task": "vt", "prediction": "AB CD", "references": ["AB", "XY"]}
    bad = ["{", "[1]", json.dumps({**good, "task": "vtt"}), json.dumps({**good, "references": []})]
    bad += [json.dumps({**good, "benchmark": "rulr"}), json.dumps({**good, "prediction": 3})]
    bad += [json.dumps({**good, "all_classes": [1]}), json.dumps({"response": "A", "answer": 1})]
    surrogate = json.dumps({**good, "prediction": "AB \ud800"})
    lines = [json.dumps(good), *bad, surrogate, json.dumps(good)]
    path = tmp_path / "in.jsonl"
    path.write_bytes(b"\xef\xbb\xbf" + "\n".join(lines).encode() + b'\n{"prediction": "\xff"}\r\n')
    report = score_file(path, tmp_path / "out.jsonl")
    assert [line for line, _ in report.errors] == [*range(2, 10), 12]
    assert "did you mean vt" in report.errors[2][1]
    written = [json.loads(line) for line in (tmp_path / "out.jsonl").read_bytes().splitlines()]
    assert [case["ours"] for case in written] == [0.5, 0.5, 0.5]
