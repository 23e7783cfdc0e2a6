"""What tests of methods and sessions share."""

from __future__ import annotations

import importlib.util
import itertools
import json

import pytest
import torch

from retrobench.core.budget import Budget
from retrobench.core.method import AttentionArgs, PromptLayer
from retrobench.core.registry import method_class, method_names
from retrobench.core.shapes import KVShape
from retrobench.core.spec import parse
from retrobench.engine import hf, loader
from retrobench.engine.model_config import ModelConfig
from retrobench.engine.prefill import prefill
from retrobench.engine.queries import weights_id
from retrobench.engine.session import open_session
from retrobench.measure.probe import CountingProbe


def ticks():
    """A clock that counts its readings."""
    count = itertools.count()
    return lambda: float(next(count))


def random_ids(length, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(3, 101, (length,), generator=generator).tolist()


def architecture(**changes):
    """The option ``model.config_json`` of a small model."""
    values = {"model_type": "llama", "vocab_size": 128, "hidden_size": 64, "intermediate_size": 64}
    values |= {"num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2}
    return json.dumps({**values, "max_position_embeddings": 8192, **changes})


def kv_shape(**changes):
    values = {"pad_tokens": (0,), "layers": (0,), "num_heads": 4, "num_kv_heads": 2}
    values |= {"head_dim": 8, "prompt_tokens": 64, "max_tokens": 80, "dtype": "float32"}
    return KVShape(**{**values, **changes})


def prompt_layer(q, k, v, args=None):
    """A layer of a prompt, all queries included."""
    args = AttentionArgs(scale=0.25) if args is None else args
    return PromptLayer(k_BGSD=k, v_BGSD=v, q_BHWD=q, args=args)


def build(method, layers, args=None):
    """Give a method the prompt: layer -> (q, k, v)."""
    for layer, (q, k, v) in layers.items():
        method.build(layer, prompt_layer(q, k, v, args))
    method.finish_build()


def open_on(model, method, prompts, options=None, *, new_tokens=8, budget=None, **settings):
    """A session that is ready to decode; ``method`` is a class or a name."""
    hf.attach(model)
    method = method_class(method) if isinstance(method, str) else method
    config = options
    if options is None or isinstance(options, dict):
        config = parse(method.Config, options or {}, "method")
    settings = {"probe": CountingProbe(), "clock": ticks(), **settings}
    budget = Budget.parse(budget) if isinstance(budget, str) else budget
    return open_session(
        model, method, config, prompts, max_new_tokens=new_tokens, budget=budget, **settings
    )


@torch.inference_mode()
def greedy_logits(session, steps):
    """Logits of the prompt's last token and of ``steps - 1`` greedy steps, stacked."""
    found = [session.logits.clone()]
    for _ in range(steps - 1):
        found.append(session.step(found[-1].argmax(-1, keepdim=True)).clone())
    session.report_counts()
    return torch.stack(found)


def real_model():
    """SmolLM2, loaded once; where it was not fetched, the test is skipped."""
    config = {"name": "smollm2", "source": "fetched", "id": "smollm2"}
    try:
        return loader.resident(parse(ModelConfig, config, "model"))
    except ValueError as error:
        pytest.skip(f"needs real weights: {error}")


def skip_without_kvpress():
    """The package is no dependency: its requirements exclude the transformers in use."""
    if importlib.util.find_spec("kvpress") is None:
        pytest.skip("needs kvpress: pip install --no-deps kvpress cachetools fire termcolor")


def make_calibrations(model, config=None):
    """What ``scripts/calibrate.py`` does, on random tokens, for every method that needs it."""
    hf.attach(model)
    files = []
    for name in method_names():
        method = method_class(name)
        if method.Calibrator is None:
            continue
        needs = method.Calibrator.needs
        made = prefill(model, [random_ids(300, 9)], clock=ticks(), needs=needs)
        options = parse(method.Config, {}, "method") if config is None else config
        files.append(method.Calibrator.save(options, made.layers, weights_id(model), {}))
    return files
