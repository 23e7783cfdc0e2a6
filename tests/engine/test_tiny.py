"""The shipped trained weights: they load without a network and answer."""

from __future__ import annotations

from functools import cache

import pytest
import torch
from transformers import AutoModelForCausalLM

from retrobench.core.spec import parse
from retrobench.engine import loader
from retrobench.engine.embedded import build_tokenizer
from retrobench.engine.loader import ModelConfig
from retrobench.tasks.ruler import spec


@cache
def tiny():
    return loader.load(parse(ModelConfig, {"name": "tiny", "source": "tiny"}, "model"))


def test_the_stored_tokenizer_is_the_embedded_one():
    text = "VAR ABCDE = 12345\nThe grass is green. 1c9ccdd7-5d7f-4d0e-9b7d-7e7f0e7c1a11"
    assert tiny().tokenizer.tokenize(text) == build_tokenizer().tokenize(text)
    assert tiny().tokenizer("a").input_ids[0] == tiny().tokenizer.bos_token_id


def test_the_weights_are_small_and_whole():
    size = (loader.TINY_DIR / "model.safetensors").stat().st_size
    assert size <= 20e6
    assert all(torch.isfinite(p).all() for p in tiny().model.parameters())
    assert tiny().model.dtype == torch.float32


def test_supported_tasks_are_tasks():
    assert tiny().supported_tasks
    assert tiny().supported_tasks <= set(spec.TASKS)


PROMPTS = {
    "One of the lucky codes for green-apple is: 4711237. The sky was wide and calm. One of the "
    "lucky codes for dark-horse is: 9020155.\nWhat is the lucky code for green-apple given in the "
    "document? The lucky code for green-apple given in the document is": "4711237",
    "The secret value of bold-river is 555. The secret value of calm-river is 871.\nWhich secret "
    "value was for calm-river? The secret value for calm-river is": "871",
}


@pytest.mark.parametrize("prompt", sorted(PROMPTS))
@torch.inference_mode()
def test_fixed_prompts_give_the_stored_answers(prompt):
    model = AutoModelForCausalLM.from_pretrained(loader.TINY_DIR, dtype=torch.float32).eval()
    tokenizer = tiny().tokenizer
    ids = torch.tensor([tokenizer(prompt).input_ids])
    output = model.generate(ids, max_new_tokens=24, do_sample=False)[0, ids.shape[1] :]
    assert PROMPTS[prompt] in tokenizer.decode(output)
