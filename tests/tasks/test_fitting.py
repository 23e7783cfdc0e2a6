"""Prompts fill their length, whatever an earlier run left in the cache."""

from __future__ import annotations

import json
import warnings

import pytest

from retrobench.engine.embedded import build_tokenizer
from retrobench.tasks import building
from retrobench.tasks.niah import NiahConfig, NiahTask
from retrobench.tasks.prompt import PromptBuilder
from retrobench.tasks.ruler import RulerConfig, RulerTask

PROMPT = PromptBuilder(build_tokenizer())
TASKS = {
    "niah": lambda: NiahTask(NiahConfig(length=(1024,), depths=2)),
    "lines": lambda: RulerTask(RulerConfig(tasks=("niah_single_1",), length=(1024,), samples=2)),
    "documents": lambda: RulerTask(RulerConfig(tasks=("qa_1",), length=(2048,), samples=2)),
}


def contexts(task):
    return [sample.context + sample.question for sample in TASKS[task]().samples(PROMPT)]


@pytest.fixture
def units(tmp_path, monkeypatch):
    monkeypatch.setenv("RETROBENCH_CACHE", str(tmp_path))
    return lambda: list((building.cache_dir() / "units").glob("*.jsonl"))


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("wrong", [3, 0, -7, 100_000, 10**18])
@pytest.mark.parametrize("with_tokens", [False, True])
def test_wrong_units_are_fitted_anew_and_said(task, wrong, with_tokens, units):
    fresh = contexts(task)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert contexts(task) == fresh  # the cache is right, nothing to say
    for file in units():
        entries = [json.loads(line) for line in file.read_text().splitlines()]
        lines = [json.dumps([e[0], wrong, *(e[2:] if with_tokens else ())]) for e in entries]
        file.write_text("\n".join(lines) + "\n")
    with pytest.warns(UserWarning, match="fitted anew"):
        assert contexts(task) == fresh
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert contexts(task) == fresh  # and the file is mended


@pytest.mark.parametrize("content", [b"", b"\xff\xfe\n", b"[]\n{}\nnull\n", b'["x", 1e400]\n["x"'])
def test_a_garbled_file_is_as_good_as_none(content, units):
    fresh = contexts("niah")
    for file in units():
        file.write_bytes(content)
    assert contexts("niah") == fresh


def test_units_that_fill_but_are_not_the_ones_are_found(units):
    fresh = contexts("lines")
    for file in units():
        entries = [json.loads(line) for line in file.read_text().splitlines()]
        lines = [json.dumps([sample, number - 1, tokens]) for sample, number, tokens in entries]
        file.write_text("\n".join(lines) + "\n")
    with pytest.warns(UserWarning, match="fitted anew"):
        assert contexts("lines") == fresh


def test_entries_without_tokens_are_read(units):
    fresh = contexts("niah")
    for file in units():
        entries = [json.loads(line) for line in file.read_text().splitlines()]
        file.write_text("\n".join(json.dumps(entry[:2]) for entry in entries) + "\n")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert contexts("niah") == fresh
