"""A pipe, a folder or a dead link in the place of a file of a checkpoint: refused by name."""

from __future__ import annotations

import json
import os
from pathlib import Path

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


@pytest.fixture
def folders(tmp_path):
    """A checkpoint's folder and one of its tokenizer, and the options that name them."""
    model = make_model(vocab_size=len(tokenizer := build_tokenizer()))
    for folder in ("path", "tokenizer"):
        model.save_pretrained(tmp_path / folder)
        tokenizer.save_pretrained(tmp_path / folder)
    options = {folder: str(tmp_path / folder) for folder in ("path", "tokenizer")}
    return {"source": "local", "device": "cpu", **options}


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("tokenizer_config.json", {"model_max_length": "x"}),
        ("tokenizer_config.json", {"model_max_length": [1]}),
        ("tokenizer_config.json", {"bos_token": 5}),
        ("config.json", {"rope_scaling": {"rope_type": "linear", "factor": "x"}}),
        ("config.json", {"num_hidden_layers": "x"}),
        ("config.json", {"num_attention_heads": []}),
    ],
)
def test_values_of_a_wrong_type_are_refused(folders, name, values):
    file = Path(folders["path"], name)
    file.write_text(json.dumps({**json.loads(file.read_text()), **values}))
    options = {**folders, "tokenizer": ""}
    with pytest.raises(ValueError, match="are not as transformers wants them") as caught:
        loader.describe(parse(ModelConfig, options, "model"))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("option", ["path", "tokenizer"])
def test_what_is_no_file_is_refused_by_name(tmp_path, folders, option, name, kind):
    file = tmp_path / option / name
    file.unlink(missing_ok=True)
    KINDS[kind](file)
    with pytest.raises(ValueError, match=f"{option}/{name}.*put the file itself|no config.json in"):
        loader.describe(parse(ModelConfig, folders, "model"))
