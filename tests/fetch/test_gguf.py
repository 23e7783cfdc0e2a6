"""``model=local model.path=FILE.gguf``: converted once, known by its content, refused by cause."""

from __future__ import annotations

import gguf
import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from retrobench.engine.loader import ModelConfig, describe
from retrobench.fetch import models
from tests.fetch.gguf_file import write_gguf


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """An empty cache folder."""
    monkeypatch.setenv("RETROBENCH_CACHE", str(tmp_path / "cache"))
    describe.cache_clear()


def ask(path):
    return describe(ModelConfig(source="local", path=str(path), device="cpu"))


def test_a_file_is_converted_once_and_known_by_its_content(tmp_path, capsys):
    info = ask(write_gguf(tmp_path / "a.gguf", pre="smollm"))
    assert info.context_limit == 256 and info.tokenizer.chat_template
    assert info.tokenizer.decode(info.tokenizer("a 12")["input_ids"]) == "a 12"
    assert "converting once" in capsys.readouterr().err
    (tmp_path / "b.gguf").write_bytes((tmp_path / "a.gguf").read_bytes())
    again = ask(tmp_path / "b.gguf")
    assert (info.identity["name"], again.identity["name"]) == ("a", "b")
    assert again.identity["revision"] == info.identity["revision"]
    assert "converting" not in capsys.readouterr().err
    ((name, folder, size),) = models.own_files()
    assert name == "a.gguf" and size > 0
    reader = gguf.GGUFReader(tmp_path / "a.gguf")
    (norm,) = [tensor.data for tensor in reader.tensors if tensor.name == "output_norm.weight"]
    model = AutoModelForCausalLM.from_pretrained(folder)
    assert torch.equal(model.model.norm.weight, torch.tensor(norm).bfloat16())


def test_what_cannot_be_read_is_named(tmp_path):
    whole = write_gguf(tmp_path / "a.gguf").read_bytes()
    cut, other, moved = (tmp_path / f"{name}.gguf" for name in ("cut", "other", "moved"))
    cut.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match=r"cut\.gguf is damaged, cut off"):
        ask(cut)
    other.write_bytes(b"PK" + whole)
    with pytest.raises(ValueError, match=r"other\.gguf is not a GGUF file"):
        ask(other)
    with pytest.raises(ValueError, match="architecture 'rwkv7' is not among .*llama"):
        ask(write_gguf(moved, architecture="rwkv7"))
    assert models.own_files() == []


def test_a_quantisation_that_cannot_be_read_is_named(tmp_path, monkeypatch):
    kind = gguf.GGMLQuantizationType.Q8_0
    path = write_gguf(tmp_path / "a.gguf")
    monkeypatch.delitem(gguf.quants._type_traits, kind)
    with pytest.raises(ValueError, match=r"a\.gguf: quantisation Q8_0 .*Supported: F16, F32"):
        ask(path)


def test_rope_scaling_of_the_file_is_kept(tmp_path):
    scaled = {"type": "yarn", "factor": 4.0, "original_context_length": 64}
    info = ask(write_gguf(tmp_path / "yarn.gguf", scaling=scaled))
    found = info.meta_model.config.rope_parameters
    assert found["rope_type"] == "yarn" and found["factor"] == 4.0
    assert found["original_max_position_embeddings"] == 64
    with pytest.raises(ValueError, match=r"odd\.gguf: rope scaling 'su' .*cannot be converted"):
        ask(write_gguf(tmp_path / "odd.gguf", scaling={"type": "su"}))


def test_llama3_factors_become_its_parameters_or_are_refused(tmp_path):
    factors = torch.tensor([1.0, 1.0, 1.0, 1.0, 8.0, 8.0, 8.0, 8.0])
    with pytest.raises(ValueError, match="rope_freqs are not those of llama3"):
        ask(write_gguf(tmp_path / "odd.gguf", rope_freqs=factors.numpy()))
    rope = {"rope_type": "llama3", "rope_theta": 10000.0, "factor": 8.0, "low_freq_factor": 1.0}
    rope |= {"high_freq_factor": 4.0, "original_max_position_embeddings": 8192}
    config = LlamaConfig(head_dim=16, rope_parameters=rope, max_position_embeddings=256)
    made, _ = ROPE_INIT_FUNCTIONS["llama3"](config, torch.device("cpu"))
    plain = 10000.0 ** (-torch.arange(0, 16, 2) / 16)
    info = ask(write_gguf(tmp_path / "llama3.gguf", rope_freqs=(plain / made).numpy()))
    assert info.meta_model.config.rope_parameters["rope_type"] == "llama3"
