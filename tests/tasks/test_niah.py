"""NIAH: depths, variants, several needles, the grid."""

from __future__ import annotations

import re

import pytest

from retrobench.core.spec import parse
from retrobench.engine.embedded import build_tokenizer
from retrobench.tasks.niah import NiahConfig, NiahTask
from retrobench.tasks.prompt import PromptBuilder

BUILDER = PromptBuilder(build_tokenizer())


def make(**options):
    task = NiahTask(NiahConfig(**{"length": (2048,), **options}))
    return task, list(task.samples(BUILDER))


@pytest.mark.parametrize("needle", ["ruler", "sandwich", "city"])
def test_the_grid_and_the_depths(needle):
    task, samples = make(needle=needle, length=(1024, 4096), depths=5)
    assert [(s.length, s.meta["depth"]) for s in samples] == [
        (length, depth) for length in (1024, 4096) for depth in (0, 25, 50, 75, 100)
    ]
    for sample in samples:
        (answer,) = sample.references
        place = 100 * sample.context.index(answer) / len(sample.context)
        assert abs(place - sample.meta["depth"]) < 16 and sample.context.count(answer) == 1
        used = BUILDER.encode(sample).num_tokens + sample.max_new_tokens
        assert 0.95 * sample.length <= used <= sample.length + 1  # and BOS
        assert task.score(sample, f"It is {answer}.") == 1 and task.score(sample, "no") == 0
    # a needle stands between two sentences
    assert all(re.search(r"[.!?\n] ?(One|The) \w+", s.context) for s in samples)


def test_needles_that_do_not_fit_are_an_error_of_their_sample_alone():
    _, (bad, good) = make(depths=1, num_needles=60, length=(512, 4096))
    assert "does not fit 384 tokens" in bad.error and good.error == "" and good.references


def test_several_needles_are_spread_below_the_depth():
    task, (sample,) = make(depths=1, num_needles=4)
    places = [100 * sample.context.index(r) / len(sample.context) for r in sample.references]
    assert all(abs(p - d) < 10 for p, d in zip(places, (50, 62.5, 75, 87.5), strict=True))
    assert "What are all the special magic numbers for" in sample.question
    assert task.score(sample, f"{sample.references[0]} and {sample.references[2]}") == 0.5
    with pytest.raises(ValueError, match="task: num_needles=2 needs needle=ruler"):
        parse(NiahConfig, {"needle": "city", "num_needles": 2}, "task")
