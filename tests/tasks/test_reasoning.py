"""Reasoning sets from local files; boxed answers."""

from __future__ import annotations

import json

import pytest

from retrobench.engine.embedded import build_tokenizer
from retrobench.tasks.prompt import PromptBuilder
from retrobench.tasks.reasoning import ReasoningConfig, ReasoningTask, boxed


def make(root, tasks):
    task = ReasoningTask(ReasoningConfig(tasks=tasks, max_new_tokens=64), str(root))
    return task, list(task.samples(PromptBuilder(build_tokenizer())))


def test_questions_and_scores(tmp_path):
    with pytest.raises(ValueError, match=r"aime24.json not found in .*retrobench fetch aime24"):
        make(tmp_path, ("aime24",))
    folder = tmp_path / "reasoning"
    folder.mkdir()
    sums = [{"question": "What is 20 + 13?", "answer": "033"}, {"question": "?", "answer": "x"}, 3]
    (folder / "aime24.json").write_text(json.dumps(sums))
    letters = [{"question": "Which is red?", "choices": ["sky", "rose"], "answer": "B"}]
    (folder / "gpqa.json").write_text(json.dumps(letters))
    task, (number, no_number, no_object, letter) = make(tmp_path, ("aime24", "gpqa"))
    assert number.user_text.startswith("What is 20 + 13?\n\nPlease reason")
    assert "item 2: 'answer'" in no_number.error and "item 3" in no_object.error
    assert "(A) sky\n(B) rose\n" in letter.user_text
    assert len(task.fingerprint(PromptBuilder(build_tokenizer()))) == 16
    for text, expected in (
        ("so \\boxed{33}", 1),
        ("first \\boxed{7}, no: \\boxed{033}.", 1),
        ("\\boxed{\\text{33}}", 1),
        ("33", 0),
        ("\\boxed{33", 0),
        ("\\boxed{3 3}", 0),
        ("", 0),
    ):
        assert task.score(number, text) == expected, text
    assert task.score(letter, "It is \\boxed{(B)}") == 1 and task.score(letter, "\\boxed{A}") == 0


def test_a_broken_file_names_the_command_that_fetches_it(tmp_path):
    (tmp_path / "reasoning").mkdir()
    (tmp_path / "reasoning" / "gpqa.json").write_text("{")
    with pytest.raises(ValueError, match=r"gpqa.json is not JSON .*retrobench fetch gpqa"):
        make(tmp_path, ("gpqa",))


def test_braces_within_a_box():
    assert boxed("\\boxed{\\frac{1}{2}} and more }") == "\\frac{1}{2}"
