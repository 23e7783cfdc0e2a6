"""Ids come from the tokenizer's backend, and equal what the tokenizer itself says."""

from __future__ import annotations

import random
from bisect import bisect_right

import pytest

from retrobench.engine.embedded import build_tokenizer
from retrobench.fetch.models import models_root
from retrobench.tasks.spelling import Spelling

PIECES = ["word", " two", "  ", "\n\n", "naïve", "東京", "1234", "<s>", "!?", " the", "x" * 30, "é"]


def texts(count):
    rng = random.Random(0)
    for _ in range(count):
        yield "".join(rng.choice(PIECES) for _ in range(rng.randrange(1, 400)))


def tokenizers():
    found = [build_tokenizer()]
    for name in ("smollm2", "gemma3_270m"):
        if (models_root() / name / "tokenizer.json").is_file():
            from transformers import AutoTokenizer

            found.append(AutoTokenizer.from_pretrained(models_root() / name))
    return found


@pytest.mark.parametrize("tokenizer", tokenizers(), ids=lambda t: type(t).__name__)
def test_ids_counts_and_borders_are_the_tokenizers_own(tokenizer):
    spelling, rng = Spelling(tokenizer), random.Random(1)
    assert spelling._plain_backend is not None
    for text in texts(60):
        own = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
        assert spelling.ids(text) == own.input_ids and spelling.count(text) == len(own.input_ids)
        assert spelling.whole(text) == tokenizer(text).input_ids
        border = rng.randrange(len(text) + 1)
        ended = bisect_right(own.offset_mapping, border, key=lambda span: span[1])
        assert spelling.split(text, border) == (own.input_ids, ended)


def test_a_tokenizer_that_does_more_than_its_backend_is_asked_itself():
    class Shouting:
        def __init__(self):
            self.inner = build_tokenizer()
            self.backend_tokenizer = self.inner.backend_tokenizer

        def __call__(self, text, **options):
            return self.inner(text.upper(), **options)

    tokenizer = Shouting()
    spelling = Spelling(tokenizer)
    text = "some words and others"
    assert spelling._plain_backend is None
    assert spelling.ids(text) == tokenizer(text, add_special_tokens=False).input_ids
    ids, before = spelling.split(text, 10)
    assert len(ids) - before == spelling.count(text[10:])
