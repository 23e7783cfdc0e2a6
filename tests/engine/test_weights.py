"""A checkpoint is read whole or refused, and the message names what is wrong with it."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from retrobench.engine import loader
from retrobench.engine.embedded import build_tokenizer

VOCABULARY = 512
KEY = "model.layers.1.self_attn.k_proj.weight"


@pytest.fixture
def folder(tmp_path, model_factory):
    model_factory(vocab_size=VOCABULARY).save_pretrained(tmp_path)
    build_tokenizer().save_pretrained(tmp_path)
    return tmp_path


def load(folder):
    loader.describe.cache_clear()
    return loader.load(loader.ModelConfig(source="local", path=str(folder)))


def rewrite(folder, change):
    path = folder / "model.safetensors"
    tensors = dict(load_file(path))
    change(tensors)
    save_file(tensors, path, {"format": "pt"})


@pytest.mark.parametrize("tied", [False, True])
def test_whole_checkpoints_are_read(tmp_path, model_factory, tied):
    model = model_factory(vocab_size=VOCABULARY, tie_word_embeddings=tied)
    model.save_pretrained(tmp_path)
    build_tokenizer().save_pretrained(tmp_path)
    assert torch.equal(load(tmp_path).model.lm_head.weight, model.lm_head.weight)


@pytest.mark.parametrize("name", [KEY, "lm_head.weight", "model.norm.weight"])
def test_a_missing_tensor_is_named(folder, name):
    rewrite(folder, lambda tensors: tensors.pop(name))
    with pytest.raises(ValueError, match=f"has no {name}"):
        load(folder)


def test_many_missing_tensors_are_counted(folder):
    rewrite(folder, lambda tensors: [tensors.pop(n) for n in list(tensors) if "layers.1" in n])
    with pytest.raises(ValueError, match=r"has no model\.layers\.1\..* and \d+ more"):
        load(folder)


def test_another_shape_is_named_with_both(folder):
    rewrite(folder, lambda tensors: tensors.update({KEY: torch.zeros(48, 60)}))
    with pytest.raises(ValueError, match=rf"{KEY} \(48, 60\) not \(48, 64\)"):
        load(folder)


@pytest.mark.parametrize(
    "name", ["model.layers.3.mlp.up_proj.weight", KEY.replace("weight", "bias")]
)
def test_a_tensor_of_a_layer_without_a_place_is_named(folder, name):
    rewrite(folder, lambda tensors: tensors.update({name: torch.zeros(2)}))
    with pytest.raises(ValueError, match=f"no place for: {name}"):
        load(folder)


def test_tensors_of_other_parts_are_let_be(folder):
    rewrite(folder, lambda tensors: tensors.update({"visual.blocks.0.norm.weight": torch.ones(2)}))
    load(folder)


@pytest.mark.parametrize("kept", [0, 5, 1000, -1])
def test_a_damaged_file_is_named(folder, kept):
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(ValueError, match=r"model\.safetensors is damaged"):
        load(folder)


def test_a_missing_shard_is_an_error(folder, model_factory):
    (folder / "model.safetensors").unlink()
    model_factory(vocab_size=VOCABULARY).save_pretrained(folder, max_shard_size="100KB")
    shard = sorted(folder.glob("model-*.safetensors"))[1]
    shard.unlink()
    with pytest.raises(ValueError, match=shard.name):
        load(folder)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("tokenizer.json", "{}"),
        ("tokenizer.json", ""),
        ("config.json", "[]"),
        ("config.json", "{}"),
        ("config.json", "{"),
        ("config.json", {"max_position_embeddings": "many"}),
        ("config.json", {"num_hidden_layers": "three"}),
        ("config.json", {"hidden_size": -1}),
        ("config.json", {"model_type": "no-such-type"}),
    ],
)
def test_a_bad_description_is_an_error_that_names_the_model(folder, name, content):
    if isinstance(content, dict):
        content = json.dumps(json.loads((folder / name).read_text()) | content)
    (folder / name).write_text(content)
    with pytest.raises(ValueError, match=str(folder)):
        load(folder)


@pytest.mark.parametrize("text", ["[]", "{}", "{", '"llama"', '{"model_type": "x"}', "null"])
def test_a_bad_architecture_is_an_error_that_names_the_option(text):
    config = loader.ModelConfig(source="hf", weights="random", config_json=text)
    with pytest.raises(ValueError, match=r"model\.config_json"):
        loader.describe(config)
