"""Prompts fill their length, whatever an earlier run left in the cache."""

from __future__ import annotations

import json
import warnings

import pytest

from retrobench.core.paths import cache_root
from retrobench.engine.embedded import build_tokenizer
from retrobench.tasks.fitting.search import TokensPerUnit, estimate, fill
from retrobench.tasks.long_generation import LongGenerationConfig, LongGenerationTask
from retrobench.tasks.niah import NiahConfig, NiahTask
from retrobench.tasks.prompt import PromptBuilder
from retrobench.tasks.ruler import RulerConfig, RulerTask, answering, spec

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
    return lambda: list((cache_root() / "units").glob("*.jsonl"))


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


class Sizes:
    """Prompts that are their number of units; remembers the largest, and refuses to build on."""

    def __init__(self, most):
        self.most, self.calls = most, 0

    def make(self, units):
        self.calls += 1
        assert units <= self.most and self.calls < 100
        return units


LIMIT = 4000
COUNTS = {
    "nothing": lambda units: 10,
    "a little": lambda units: 10 + units // 1000,
    "almost nothing": lambda units: 10 + (units > 40_000),
    "up to a point": lambda units: min(units, LIMIT // 2),
}


@pytest.mark.parametrize("kind", ["nothing", "a little", "almost nothing"])
def test_text_that_makes_no_tokens_is_an_error_that_names_the_cause(kind):
    for unit in (1, 50, 400):
        sizes = Sizes(24 * unit + 16 * LIMIT)
        with pytest.raises(ValueError, match="chat template leaves out the message"):
            estimate(sizes.make, COUNTS[kind], LIMIT, unit)


@pytest.mark.parametrize("kind", COUNTS)
def test_a_prompt_that_stops_growing_ends_the_search(kind):
    sizes = Sizes(300 * LIMIT)
    with pytest.raises(ValueError, match="units of text make a prompt of"):
        fill(sizes.make, COUNTS[kind], LIMIT, TokensPerUnit(1.0, 10.0), "a")


def test_documents_that_must_be_there_do_not_look_like_a_stuck_prompt():
    found = estimate(lambda units: units, lambda units: max(3000, units) // 4, LIMIT, 1)
    assert found.per_unit == pytest.approx(0.25, rel=0.1)


@pytest.mark.parametrize("task", [*spec.TASKS, "niah", "recite", "walk"])
@pytest.mark.parametrize("fault", ["template", "tokenizer"])
def test_a_template_or_tokenizer_that_drops_the_text_is_named(task, fault, units):
    tokenizer = build_tokenizer()
    tokenizer.chat_template = "[]" if fault == "template" else None
    prompt = PromptBuilder(tokenizer)
    if fault == "tokenizer":
        prompt.count = lambda text: 7
    if task == "niah":
        built = NiahTask(NiahConfig(length=(1024,), depths=1, samples=2))
    elif task in spec.TASKS:
        built = RulerTask(RulerConfig(tasks=(task,), length=(1024,), samples=2))
    else:
        options = LongGenerationConfig(tasks=(task,), length=(1024,), samples=2, items=20)
        built = LongGenerationTask(options)
    for sample in built.samples(prompt):
        assert "chat template leaves out the message" in sample.error


def test_empty_documents_do_not_fill_a_prompt_for_ever():
    assert answering._filling(iter(["", "ab", "", "c", "abcdefgh"] + [""] * 60), 4) == ["ab", "c"]
