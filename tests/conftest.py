"""Shared fixtures: tiny random models, NaN-poisoned memory, one thread."""

from __future__ import annotations

import atexit
import os
import shutil
import tempfile

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import pytest
import torch
from retrobench_kernels import native
from transformers import AutoModelForCausalLM, LlamaConfig

from retrobench.fetch.models import models_root

torch.set_num_threads(1)
# a cache of its own, but for fetched models and compiled kernels (named by what they are made of)
models = models_root()
models.mkdir(parents=True, exist_ok=True)
kernels = native.cache_dir()
kernels.mkdir(parents=True, exist_ok=True)
os.environ["RETROBENCH_CACHE"] = tempfile.mkdtemp(prefix="retrobench-")
native.cache_dir().symlink_to(kernels)
models_root().symlink_to(models)
atexit.register(shutil.rmtree, os.environ["RETROBENCH_CACHE"], ignore_errors=True)

TINY = {
    "vocab_size": 101,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 24,
    "max_position_embeddings": 4096,
    "pad_token_id": 0,
    "eos_token_id": 1,
    "bos_token_id": 2,
}


def make_model(config_class: type = LlamaConfig, **overrides):
    """A small random model, the same for the same arguments."""
    torch.manual_seed(1)
    return AutoModelForCausalLM.from_config(config_class(**{**TINY, **overrides})).eval()


@pytest.fixture
def tiny_llama():
    return make_model()


@pytest.fixture
def model_factory():
    return make_model


@pytest.fixture
def poisoned_empty(monkeypatch):
    """Memory that nobody wrote holds NaN, so reading it shows."""
    original = torch.empty

    def empty(*args, **kwargs):
        tensor = original(*args, **kwargs)
        return tensor.fill_(torch.nan) if tensor.is_floating_point() else tensor

    monkeypatch.setattr(torch, "empty", empty)
