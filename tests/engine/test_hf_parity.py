"""`full` through the adapter equals the model's own attention, family by family."""

from __future__ import annotations

import warnings

import pytest
import torch
from transformers import (
    DynamicCache,
    FalconConfig,
    FalconForCausalLM,
    Gemma2Config,
    GemmaConfig,
    GptOssConfig,
    LlamaConfig,
    MistralConfig,
    Phi3Config,
    Qwen2Config,
    Qwen3Config,
)

from retrobench.engine.generation import Decoding
from retrobench.engine.hf import MethodBypassed
from retrobench.engine.prefill import NotFinite
from tests.support import greedy_logits, open_on, random_ids

SLIDING = {"sliding_window": 16}
FAMILIES = {
    "llama_gqa": (LlamaConfig, {}),
    "llama_mha": (LlamaConfig, {"num_key_value_heads": 4}),
    "qwen2": (Qwen2Config, {}),
    "qwen2_mixed_sliding": (
        Qwen2Config,
        {**SLIDING, "use_sliding_window": True, "max_window_layers": 1},
    ),
    "qwen3_qk_norm": (Qwen3Config, {}),
    "mistral": (MistralConfig, {"sliding_window": None}),
    "phi3": (Phi3Config, {"sliding_window": None, "head_dim": 16}),
    "gemma": (GemmaConfig, {}),
    "gemma2_softcap_sliding": (Gemma2Config, SLIDING),
}


def open_full(model, prompts, chunk=64, **settings):
    return open_on(model, "full", prompts, chunk_tokens=chunk, **settings)


def own_logits(model, prompts, steps):
    """Greedy logits of the model's own attention, left-padded."""
    longest = max(map(len, prompts))
    ids = torch.tensor([[0] * (longest - len(p)) + p for p in prompts])
    mask = torch.tensor([[0] * (longest - len(p)) + [1] * len(p) for p in prompts])
    cache, logits = DynamicCache(config=model.config), []
    for _ in range(steps):
        position = (mask.cumsum(-1) - 1).clamp_min(0)[:, -ids.shape[1] :]
        output = model(ids, attention_mask=mask, position_ids=position, past_key_values=cache)
        logits.append(output.logits[:, -1].float())
        ids = logits[-1].argmax(-1, keepdim=True)
        mask = torch.cat([mask, torch.ones(len(prompts), 1, dtype=torch.long)], 1)
    return torch.stack(logits)


@pytest.mark.parametrize("chunk", [64, 13])  # 40 = 3 x 13 + 1: a last chunk of one token
@pytest.mark.parametrize("family", FAMILIES)
@torch.inference_mode()
def test_full_equals_the_models_own_attention(family, chunk, model_factory):
    config, overrides = FAMILIES[family]
    model = model_factory(config, **overrides)
    if "softcap" in family:
        model.set_attn_implementation("eager")
    torch.manual_seed(3)
    prompts = [torch.randint(3, 101, (n,)).tolist() for n in (40, 23)]
    expected = own_logits(model, prompts, 6)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        session = open_full(model, prompts, chunk=chunk)
    torch.testing.assert_close(greedy_logits(session, 6), expected, atol=2e-5, rtol=1e-4)
    session.close()


@torch.inference_mode()
def test_bf16_is_close(model_factory):
    model = model_factory().to(torch.bfloat16)
    prompts = [list(range(3, 60)), list(range(5, 40))]
    expected = own_logits(model, prompts, 1)
    got = greedy_logits(open_full(model, prompts), 1)
    assert (got - expected).abs().max() < 0.05 * expected.abs().max()


def test_a_model_that_ignores_the_interface_is_refused():
    torch.manual_seed(0)
    config = FalconConfig(
        vocab_size=101, hidden_size=64, num_hidden_layers=2, num_attention_heads=4, alibi=False
    )
    model = FalconForCausalLM(config).eval()
    with pytest.raises((ValueError, MethodBypassed)), torch.inference_mode():
        open_full(model, [[5, 6, 7]])


def test_attention_sinks_are_refused_by_name(model_factory):
    model = model_factory(GptOssConfig, num_local_experts=2, num_experts_per_tok=1)
    with pytest.raises(ValueError, match="attention sinks"):
        open_full(model, [[5, 6, 7]])


def test_a_model_without_full_attention_is_refused(model_factory):
    with pytest.raises(ValueError, match="no full-attention layer"):
        open_full(model_factory(MistralConfig, **SLIDING), [[5, 6, 7]])


def test_nan_in_the_logits_is_an_error(tiny_llama):
    tiny_llama.lm_head.weight.data[3, 3] = torch.nan
    with pytest.raises(NotFinite), torch.inference_mode():
        open_full(tiny_llama, [[5, 6, 7]])


def test_generation_is_seeded_and_stops(tiny_llama):
    def run(seed):
        session = open_full(tiny_llama, [list(range(3, 30))], new_tokens=12)
        decoding = Decoding(max_new_tokens=12, temperature=1.0, top_p=0.9, seed=seed)
        return session.generate(decoding, frozenset()).token_ids[0]

    assert run(1) == run(1) != run(2)
    first = run(1)[4]
    session = open_full(tiny_llama, [list(range(3, 30))], new_tokens=12)
    stopped = session.generate(
        Decoding(max_new_tokens=12, temperature=1.0, top_p=0.9, seed=1), frozenset({first})
    )
    assert stopped.stop_reasons == ["eos"] and len(stopped.token_ids[0]) <= 4


def test_tail_through_decode_equals_prefill_for_full(tiny_llama):
    prompt = random_ids(60)
    decoding = Decoding(max_new_tokens=6)
    whole = open_full(tiny_llama, [prompt]).generate(decoding, frozenset())
    tail = open_full(tiny_llama, [prompt], tail_tokens=20).generate(decoding, frozenset())
    assert whole.token_ids == tail.token_ids
    assert tail.decode_steps == whole.decode_steps + 20
