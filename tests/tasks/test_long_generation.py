"""Long answers: over 1024 tokens, every item from the context, scored up to the first error."""

from __future__ import annotations

import pytest

from retrobench.cli import app as cli
from retrobench.engine.embedded import build_tokenizer
from retrobench.store.results import ResultStore
from retrobench.tasks.long_generation import LongGenerationConfig, LongGenerationTask
from retrobench.tasks.prompt import PromptBuilder
from tests.e2e.runs import config

BUILDER = PromptBuilder(build_tokenizer())


def make(**options):
    task = LongGenerationTask(LongGenerationConfig(**options))
    return task, list(task.samples(BUILDER))


@pytest.mark.parametrize(("name", "items"), [("recite", 400), ("walk", 130)])
def test_samples(name, items):
    task, (sample,) = make(tasks=(name,), items=items)
    answer = (" " if name == "recite" else "\n").join(sample.references)
    assert BUILDER.count(answer) > 1024 and BUILDER.count(answer) < sample.max_new_tokens
    used = BUILDER.encode(sample).num_tokens + sample.max_new_tokens
    assert 0.95 * 8192 <= used <= 8193
    assert task.score(sample, answer) == task.score(sample, f"Sure.\n{answer}\nDone.") == 1
    half = items // 2
    wrong = [*sample.references[:half], "a-b: 1" if name == "walk" else "1"]
    text = "\n".join([*wrong, *sample.references[half + 1 :]])
    assert task.score(sample, text) == half / items and task.score(sample, "") == 0
    if name == "walk":
        facts = dict(item.split(": ") for item in sample.references)
        assert all(sample.context.count(f"the next station is {name},") == 1 for name in facts)
    else:
        assert sample.context.index(answer) < 0.2 * len(sample.context)


def test_weave_needs_the_list_and_its_own_lines():
    task, (sample,) = make(tasks=("weave",), items=100, lag=30)
    pairs = [line.split(": ") for line in sample.references]
    numbers = [number for number, _ in pairs]
    assert " ".join(numbers) in sample.context and len(set(numbers)) == 100
    assert [earlier for _, earlier in pairs] == ["0"] * 30 + numbers[:70]
    assert "30 lines above" in sample.question
    answer = "\n".join(sample.references)
    assert task.score(sample, answer) == 1 and BUILDER.count(answer) < sample.max_new_tokens
    lines = answer.split("\n")
    lines[50] = f"{numbers[50]}: {numbers[19]}"  # a line off
    assert task.score(sample, "\n".join(lines)) == 0.5


@pytest.mark.parametrize("name", ["recite", "walk", "weave"])
@pytest.mark.parametrize("tokens", [2048, 16384])
def test_answers_have_the_length_that_was_asked_for(name, tokens):
    _, (sample,) = make(tasks=(name,), answer_tokens=tokens, length=(65536,))
    answer = (" " if name == "recite" else "\n").join(sample.references)
    assert abs(BUILDER.count(answer) / tokens - 1) < 0.05 and not sample.error
    assert BUILDER.encode(sample).num_tokens + sample.max_new_tokens <= 65537


def test_what_does_not_fit_says_so():
    _, (sample,) = make(length=(1024,))
    assert "task.items" in sample.error


@pytest.mark.parametrize(
    "method",
    ["full", pytest.param("retroinfer", marks=pytest.mark.slow)],
)
def test_the_embedded_model_recites(tmp_path, method):
    items, length = (30, 640) if method == "full" else (180, 2048)
    task = {"name": "long_generation", "length": length, "items": items}
    outcome = cli.run_job(config(tmp_path, method={"name": method}, task=task))
    (row,) = ResultStore(tmp_path).read(outcome["key"]).rows.values()
    assert row["status"] == "ok" and row["generated_tokens"] >= 3 * items
    assert row["score"] == 1.0 if method == "full" else row["score"] > 0
