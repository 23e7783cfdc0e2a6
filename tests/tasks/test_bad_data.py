"""Data files that do not hold what their benchmark needs: an error that names the file."""

from __future__ import annotations

import json
import os
from types import SimpleNamespace
from typing import Any

import pytest

from retrobench.core.spec import parse
from retrobench.tasks import task_class

PROMPT: Any = SimpleNamespace(tokenizer_id="words")
DEEP = "[" * 100_000
FILES = {  # file -> task, sub-task, contents that are JSON of another shape
    "PaulGrahamEssays.json": (
        "ruler",
        "niah_single_2",
        [[], 3, None, {}, {"text": 5}, {"text": " "}],
    ),
    "squad.json": (
        "ruler",
        "qa_1",
        [
            [],
            3,
            {},
            {"data": 5},
            {"data": []},
            {"data": [{"paragraphs": [{"context": 3, "qas": []}]}]},
            {"data": [{"paragraphs": [{"context": "x", "qas": [{"question": "q"}]}]}]},
        ],
    ),
    "hotpotqa.json": (
        "ruler",
        "qa_2",
        [
            [],
            3,
            {"data": 5},
            [{"context": 3}],
            [{"context": [["title"]], "question": "q", "answer": "a"}],
            [{"context": [["title", ["a"]]], "question": "q"}],
            [{"context": [["title", ["a"]]], "question": " ", "answer": "a"}],
        ],
    ),
    "english_words.json": ("ruler", "cwe", [[], 3, {}, {"0": 5}, {"0": " "}]),
    "longbench/qasper.jsonl": ("longbench", "qasper", []),
    "longbench_v2/data.json": ("longbench_v2", None, [[], 3, {}]),
    "reasoning/aime24.json": ("reasoning", "aime24", [[], 3, {}]),
}
CASES = [
    (name, content)
    for name, (_, _, wrong) in FILES.items()
    for content in ["", " \n", *map(json.dumps, wrong)]
]
PLACED = {"folder": os.mkdir, "pipe": os.mkfifo, "dead link": lambda p: os.symlink("nowhere", p)}
NO_FILES = [(name, kind) for name in [*FILES, "prose/a.txt"] for kind in PLACED]


def read(root, name):
    """Everything that planning and running read of a task's data."""
    task_name, sub_task, _ = FILES.get(name, FILES["PaulGrahamEssays.json"])
    kind = task_class(task_name)
    options = {} if sub_task is None else {"tasks": [sub_task]}
    task = kind(parse(kind.Config, options, "task"), str(root))
    task.fingerprint(PROMPT)
    return list(task.samples(PROMPT))


@pytest.mark.parametrize(("name", "content"), CASES)
def test_content_of_another_shape_is_refused_by_file(tmp_path, name, content):
    path = tmp_path / name
    path.parent.mkdir(exist_ok=True)
    path.write_text(content)
    with pytest.raises(ValueError, match=path.name) as caught:
        read(tmp_path, name)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("name", "kind"), NO_FILES)
def test_what_is_no_file_is_refused_and_never_waited_for(tmp_path, name, kind):
    path = tmp_path / name
    path.parent.mkdir(exist_ok=True)
    PLACED[kind](path)
    with pytest.raises(ValueError, match=f"{path.name} (is .*put the file itself there|not found)"):
        read(tmp_path, name)


@pytest.mark.parametrize("content", [DEEP, b"\xff\xfe", "{"])
@pytest.mark.parametrize("name", [name for name in FILES if name.endswith(".json")])
def test_content_that_is_no_json_is_refused_by_file(tmp_path, name, content):
    path = tmp_path / name
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(ValueError, match=rf"{path.name} is not JSON"):
        read(tmp_path, name)


def test_prose_without_a_word_or_in_another_encoding_is_refused_by_file(tmp_path):
    (tmp_path / "prose").mkdir()
    (tmp_path / "prose" / "a.txt").write_text(" \n")
    for beside in ("", "c.txt"):
        if beside:
            (tmp_path / "prose" / beside).write_text("words of good prose")
        with pytest.raises(ValueError, match=r"a\.txt: there is no text"):
            read(tmp_path, "prose/a.txt")
    (tmp_path / "prose" / "b.txt").write_bytes(b"caf\xe9")
    with pytest.raises(ValueError, match=r"b\.txt is not UTF-8"):
        read(tmp_path, "prose/a.txt")


@pytest.mark.parametrize(
    ("task", "option", "value", "said"),
    [
        ("ruler", "tasks", [], r"task\.tasks=\[\] asks for nothing.*niah_single_1"),
        ("ruler", "length", [], r"task\.length=\[\] asks for nothing"),
        ("longbench", "tasks", [], "asks for nothing"),
        ("speed", "context", [], "asks for nothing"),
        ("ruler", "length", [1024, 2048, 1024], r"task\.length: 1024 is named twice"),
        ("ruler", "tasks", ["vt", "vt"], "vt is named twice"),
    ],
)
def test_lists_that_ask_for_nothing_or_twice_are_refused(task, option, value, said):
    with pytest.raises(ValueError, match=said):
        parse(task_class(task).Config, {option: value}, "task")
