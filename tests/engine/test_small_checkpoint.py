"""A small checkpoint: tried with the tokens that it has, read without transformers' bar."""

from __future__ import annotations

import os

import pytest
from transformers import AutoTokenizer

from retrobench.core.spec import parse
from retrobench.engine import loader
from retrobench.engine.embedded.tokenizer import build_tokenizer
from retrobench.engine.model_config import ModelConfig
from retrobench.engine.traits import examine, traits


@pytest.mark.parametrize("vocab_size", [101, 40])
def test_an_architecture_is_tried_with_the_tokens_that_it_has(model_factory, vocab_size):
    model = model_factory(vocab_size=vocab_size)
    found = examine(model)
    assert found.layers == (0, 1, 2) and not found.refusal and not found.untried


def test_loading_is_silent_and_an_unwritable_cache_is_no_error(
    model_factory, tmp_path, capfd, monkeypatch
):
    monkeypatch.setenv("RETROBENCH_CACHE", "/dev/null/x")
    tokenizer = build_tokenizer()
    model_factory(vocab_size=len(tokenizer), hidden_size=32).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    assert AutoTokenizer.from_pretrained(tmp_path)
    capfd.readouterr()
    config = {"name": "small", "source": "local", "path": str(tmp_path)}
    loaded = loader.load(parse(ModelConfig, config, "model"))
    assert not traits(loaded.model).refusal
    out, error = capfd.readouterr()
    assert "Loading weights" not in out + error and "%|" not in out + error


@pytest.mark.parametrize("content", ["", "{", "[]", "{}", '{"model": 5}', None])
def test_a_trace_without_a_manifest_is_refused_by_file(tmp_path, content):
    if content is None:
        os.mkfifo(tmp_path / "manifest.json")
    else:
        (tmp_path / "manifest.json").write_text(content)
    config = parse(ModelConfig, {"source": "trace", "path": str(tmp_path)}, "model")
    with pytest.raises(ValueError, match=r"manifest\.json.*record"):
        loader.describe(config)
