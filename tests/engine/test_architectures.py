"""Families are right, or refused by cause; a reduced form of ``make matrix``."""

from __future__ import annotations

import json

import pytest
import torch
from transformers import (
    DeepseekV3Config,
    FalconH1Config,
    Gemma2Config,
    GPTNeoXConfig,
    MistralConfig,
    Phi3Config,
)

from retrobench.core.traces import MANIFEST
from retrobench.engine import context, hf, small_model, traits, trial
from retrobench.engine.model_cache import make_cache
from retrobench.engine.replay import TraceModel
from retrobench.engine.shape import kv_shape
from retrobench.evaluate.calibrate import calibrate
from tests import support_matrix as support
from tests.conftest import make_model
from tests.support import open_on, random_ids

RIGHT = ("deepseek_v3", "falcon_h1", "llama4_text", "nemotron", "stablelm", "phi3, longrope")
REFUSED = {
    "gpt_oss": "attention sinks",
    "diffllama": "asks for attention",
    "doge": "mask or bias of its own",
    "inkling_text": "position_bias",
    "deepseek_v32": "no full-attention layer",
    "falcon": "ignores the attention interface",
}


@pytest.mark.parametrize("name", RIGHT)
def test_family_is_right(name):
    made = support.try_family(name)
    assert made.outcome == "right", made
    assert set(made.differences) == set(support.MODES)
    assert max(made.differences.values()) < trial.RIGHT


@pytest.mark.parametrize("name", REFUSED)
def test_family_is_refused_by_cause(name):
    made = support.try_family(name)
    assert made.outcome == "refused" and REFUSED[name] in made.cause


def test_a_wrong_family_is_found(monkeypatch):
    """Without the rope of each row's own length, longrope is refused: the trial can fail."""
    monkeypatch.setattr("retrobench.engine.rope._by_length", lambda kind: False)
    found = traits.examine(support._build("phi3, longrope"))
    assert "standard deviations" in found.refusal or found.equal_rows
    assert not traits.examine(support._build("llama")).refusal


def test_rows_that_padding_disturbs_are_served_alone():
    assert traits.examine(support._build("bart")).equal_rows


def test_jamba_gets_its_prompt_in_one_chunk():
    model = support._build("jamba")
    assert traits.examine(model).whole_prompt
    copied = small_model.small_copy(model, small_model.small_config(model.config))
    prompts, answers = trial.texts((61,), 4, small_model.VOCABULARY)
    expected = trial.own_logits(copied, prompts, answers)
    copied.whole_prompt = True  # as the loader marks such a model
    ours = trial.our_logits(copied, prompts, answers, chunk_tokens=20)
    assert trial.difference(expected, ours) < trial.RIGHT
    copied.whole_prompt = False
    ours = trial.our_logits(copied, prompts, answers, chunk_tokens=20)
    assert trial.difference(expected, ours) > trial.RIGHT


@pytest.mark.parametrize(
    ("config_class", "options"),
    [
        (
            DeepseekV3Config,
            {"qk_nope_head_dim": 16, "qk_rope_head_dim": 8, "v_head_dim": 12, "kv_lora_rank": 16}
            | {
                "q_lora_rank": 24,
                "n_routed_experts": 4,
                "num_experts_per_tok": 2,
                "num_key_value_heads": 4,
            }
            | {"n_group": 1, "topk_group": 1, "head_dim": 8},
        ),
        (FalconH1Config, {"mamba_d_ssm": 64, "mamba_n_heads": 8, "mamba_d_head": 8}),
        (Gemma2Config, {"sliding_window": 16}),
    ],
)
def test_the_plan_has_the_shapes_of_the_session(config_class, options):
    model = make_model(config_class, **options)
    planned = kv_shape(model, (0,), 60, 8)
    with open_on(model, "full", [random_ids(60)], {}) as session:
        assert session.shape == planned
        assert session.allocated() == session.method.plan(session.method.config, planned)


def test_context_limit():
    yarn = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 1024}
    scaled = make_model(rope_parameters={"rope_theta": 1e4, **yarn}, max_position_embeddings=1024)
    assert context.context_limit(scaled) == 4096
    plain = make_model()
    assert context.context_limit(plain) == 4096
    context.set_rope(
        plain.config, '{"rope_type":"yarn","factor":4.0,"original_max_position_embeddings":4096}'
    )
    assert context.context_limit(plain) == 16384
    context.set_limit(plain, 100_000)
    assert context.context_limit(plain) == 100_000
    assert "beyond the 16384 tokens" in context.beyond_claim(plain, "m")
    context.set_limit(plain, 100)
    assert context.context_limit(plain) == 100 and not context.beyond_claim(plain, "m")
    with pytest.raises(ValueError, match="rope_type"):
        context.parse_rope("yarn")


@pytest.mark.parametrize("config_class", [MistralConfig, Phi3Config])
def test_a_window_that_never_binds_is_full_attention(config_class):
    wide = make_model(config_class, sliding_window=4096)
    assert make_cache(wide)[1] == (0, 1, 2)
    narrow = make_model(config_class, sliding_window=4095)
    with pytest.raises(ValueError, match="no full-attention layer"):
        make_cache(narrow)
    context.set_limit(narrow, 2048)
    assert make_cache(narrow)[1] == (0, 1, 2)
    prompts, answers = trial.texts((61,), 4, 101)
    expected = trial.own_logits(wide, prompts, answers)
    ours = trial.our_logits(wide, prompts, answers, chunk_tokens=20)
    assert trial.difference(expected, ours) < trial.RIGHT


def test_calibration_refuses_what_the_run_would(tmp_path):
    from retrobench.core.registry import method_class
    from retrobench.core.spec import parse

    model = make_model(GPTNeoXConfig)
    hf.attach(model)
    method = method_class("infinigen")
    loaded = type("Loaded", (), {"model": model, "identity": {}, "tokenizer": None})
    config = parse(method.Config, {"calibration_dir": str(tmp_path)}, "method")
    with pytest.raises(ValueError, match="no `self_attn`") as refusal:
        calibrate(method, config, str(tmp_path), loaded, "text")
    with pytest.raises(ValueError, match="no `self_attn`") as run:
        hf.attention_modules(model)
    assert str(refusal.value) == str(run.value)


def test_traits_are_kept_on_disk(tmp_path, monkeypatch):
    monkeypatch.setenv("RETROBENCH_CACHE", str(tmp_path))
    model = make_model(num_hidden_layers=2, head_dim=20)
    found = traits.traits(model)
    assert found.layers == (0, 1) and found.head_dim == 20
    traits._known.clear()
    monkeypatch.setattr(traits, "examine", lambda model: pytest.fail("looked again"))
    assert traits.traits(model) == found


@torch.inference_mode()
def test_rope_by_length_is_each_rows_own():
    """Rows below, across and beyond the trained window, in one batch and in any order."""
    rope = {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}
    model = make_model(rope_parameters=rope, max_position_embeddings=48)
    small_model.enliven(model)
    prompts, answers = trial.texts((61, 23, 45), 6, 101)
    expected = trial.own_logits(model, prompts, answers)
    for order in ([0, 1, 2], [2, 0, 1]):
        rows = [prompts[i] for i in order], [answers[i] for i in order]
        ours = trial.our_logits(model, *rows, chunk_tokens=20)
        assert trial.difference([expected[i] for i in order], ours) < trial.RIGHT


def test_a_trace_of_any_head_count_is_a_model(tmp_path):
    manifest = {"layers": [0, 2], "heads": 9, "kv_heads": 3, "head_dim": 20, "dtype": "float32"}
    manifest |= {"weights_id": "w", "samples": [{"ids": [5, 6]}]}
    (tmp_path / MANIFEST).write_text(json.dumps(manifest))
    shape = kv_shape(TraceModel(tmp_path, "cpu"), (0,), 10, 2)
    assert (shape.layers, shape.num_heads, shape.num_kv_heads) == ((0, 2), 9, 3)
