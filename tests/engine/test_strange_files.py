"""A pipe, a folder or a dead link in the place of a file of a checkpoint: refused by name."""

from __future__ import annotations

import os

import pytest

from retrobench.core.spec import parse
from retrobench.engine import loader
from retrobench.engine.embedded import build_tokenizer
from retrobench.engine.model_config import ModelConfig
from tests.conftest import make_model

FILES = ("config.json", "tokenizer.json", "tokenizer_config.json", "model.safetensors")
FILES += ("generation_config.json", "chat_template.jinja", "model-2.safetensors")
KINDS = {
    "pipe": os.mkfifo,
    "folder": os.mkdir,
    "dead link": lambda path: os.symlink("nowhere", path),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("option", ["path", "tokenizer"])
def test_what_is_no_file_is_refused_by_name(tmp_path, option, name, kind):
    model = make_model(vocab_size=len(tokenizer := build_tokenizer()))
    for folder in ("path", "tokenizer"):
        model.save_pretrained(tmp_path / folder)
        tokenizer.save_pretrained(tmp_path / folder)
    file = tmp_path / option / name
    file.unlink(missing_ok=True)
    KINDS[kind](file)
    options = {"source": "local", "device": "cpu"}
    options |= {folder: str(tmp_path / folder) for folder in ("path", "tokenizer")}
    with pytest.raises(ValueError, match=f"{option}/{name}.*put the file itself|no config.json in"):
        loader.describe(parse(ModelConfig, options, "model"))
