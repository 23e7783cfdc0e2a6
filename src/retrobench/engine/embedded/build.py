"""Assembles the constructed model: a stock LlamaForCausalLM whose weights are written, not trained.

The design extends induction heads (Olsson et al. 2022): previous-token heads, anchors that carry
the key of a needle to the tokens of its value, and lookups that match key and word.
"""

from __future__ import annotations

import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from retrobench.engine.embedded import lookup, reading, rope
from retrobench.engine.embedded.alphabet import Alphabet
from retrobench.engine.embedded.circuit import CONST, Layer, Residual, norm_weights
from retrobench.engine.embedded.stream import make_residual

VERSION = 1  # raise when the weights change
NUM_LAYERS, NUM_HEADS, NUM_KV_HEADS = 3, 4, 2
HIDDEN_MULTIPLE = 64
INTERMEDIATE = 1088


def make_config(alphabet: Alphabet, residual: Residual) -> LlamaConfig:
    """The architecture: grouped-query attention, RoPE with a huge base, no biases."""
    return LlamaConfig(
        vocab_size=alphabet.size,
        hidden_size=-(-residual.size // HIDDEN_MULTIPLE) * HIDDEN_MULTIPLE,
        intermediate_size=INTERMEDIATE,
        num_hidden_layers=NUM_LAYERS,
        num_attention_heads=NUM_HEADS,
        num_key_value_heads=NUM_KV_HEADS,
        head_dim=rope.HEAD_DIM,
        max_position_embeddings=rope.MAX_TOKENS,
        rope_parameters={"rope_type": "default", "rope_theta": rope.THETA},
        rms_norm_eps=1e-6,
        tie_word_embeddings=False,
        bos_token_id=alphabet.bos,
        eos_token_id=alphabet.eos,
        pad_token_id=alphabet.pad,
    )


def embedding(alphabet: Alphabet, residual: Residual, width: int) -> Tensor:
    """Token embeddings ``[V, hidden]``."""
    table_VE = torch.zeros(alphabet.size, width)
    table_VE[:, 0] = CONST
    table_VE[:, residual["flags"]] = alphabet.flags_VF
    table_VE[:, residual["me"]] = alphabet.code_VC
    table_VE[:, residual["output"]] = alphabet.output_VO
    table_VE[alphabet.bos, residual["bos"]] = 1.0
    return table_VE


def build_layers(config: LlamaConfig, residual: Residual, alphabet: Alphabet) -> list[Layer]:
    """Read the neighbourhood, read the anchors, look up."""
    layers = [Layer(config, residual) for _ in range(config.num_hidden_layers)]
    reading.previous_tokens(layers[0])
    reading.words_and_keys(layers[0], alphabet)
    reading.anchors(layers[1])
    reading.states(layers[1])
    lookup.lookups(layers[2])
    return layers


def build_model(alphabet: Alphabet, dtype: torch.dtype) -> LlamaForCausalLM:
    """The model on the CPU, in evaluation mode."""
    residual = make_residual()
    config = make_config(alphabet, residual)
    width = config.hidden_size
    norm = norm_weights(width)
    state = {
        "model.embed_tokens.weight": embedding(alphabet, residual, width),
        "model.norm.weight": norm,
        "lm_head.weight": lookup.output_head(alphabet, residual, width),
    }
    for i, layer in enumerate(build_layers(config, residual, alphabet)):
        prefix = f"model.layers.{i}."
        for name in ("q", "k", "v", "o"):
            state[f"{prefix}self_attn.{name}_proj.weight"] = getattr(layer, name)
        for name in ("gate", "up", "down"):
            state[f"{prefix}mlp.{name}_proj.weight"] = getattr(layer, name)
        state[prefix + "input_layernorm.weight"] = norm
        state[prefix + "post_attention_layernorm.weight"] = norm
    with torch.device("meta"):
        model = LlamaForCausalLM(config)
    # Copies: parameters must not share storage.
    model.load_state_dict({k: v.to(dtype, copy=True) for k, v in state.items()}, assign=True)
    model.model.rotary_emb = LlamaRotaryEmbedding(config)
    return model.requires_grad_(False).eval()
