"""The embedded model: tokenizer round trip, answers, end of answer, stable identity."""

from __future__ import annotations

from functools import cache

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from retrobench.engine import embedded
from retrobench.tasks.prompt import PromptBuilder
from retrobench.tasks.ruler import RulerConfig, RulerTask


@cache
def loaded(dtype):
    return embedded.load_constructed(dtype)


@settings(max_examples=200, deadline=None)
@given(st.text())
def test_the_tokenizer_restores_every_text(text):
    tokenizer = loaded(torch.float32)[1]
    ids = tokenizer(text, add_special_tokens=False).input_ids
    assert tokenizer.decode(ids) == text


def test_words_numbers_and_uuids_are_few_tokens():
    tokenizer = loaded(torch.float32)[1]
    assert tokenizer.tokenize(" 1234567") == ["Ġ123", "456", "7"]
    assert len(tokenizer.tokenize(" 1c9ccdd7-5d7f-4d0e-9b7d-7e7f0e7c1a11")) == 20
    assert len(tokenizer.tokenize(" The special magic number for")) == 5


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    "task", [f"niah_{kind}_{i}" for kind in ("single", "multikey") for i in (1, 2, 3)]
)
@torch.inference_mode()
def test_stock_generate_answers(task, dtype):
    model, tokenizer = loaded(dtype)
    ruler = RulerTask(RulerConfig(tasks=(task,), length=(1024,), samples=2))
    prompt = PromptBuilder(tokenizer)
    for sample in ruler.samples(prompt):
        ids = torch.tensor([prompt.encode(sample).ids])
        output = model.generate(ids, max_new_tokens=64, do_sample=False)[0, ids.shape[1] :]
        assert ruler.score(sample, tokenizer.decode(output)) == 1.0
        assert output[-1] == tokenizer.eos_token_id


def test_the_identity_is_stable():
    assert embedded.content_hash() == embedded.content_hash()
    first, second = (embedded.constructed.build(loaded(torch.float32)[1]) for _ in range(2))
    pairs = zip(first.parameters(), second.parameters(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)
