"""The trained model's architecture: a stock Qwen2 with the starting point of ``start``."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from transformers import Qwen2Config, Qwen2ForCausalLM

from retrobench.core.spec import option
from retrobench.training import circuits, start
from retrobench.training.layer import MARK, Layer


@dataclass(frozen=True, kw_only=True)
class Shape:
    """Options of ``shape.*``."""

    hidden: int = option(344, "width of the residual stream")
    mlp: int = option(32, "hidden width of the MLPs", low=16)
    theta: float = option(1e18, "RoPE base: large, so that many dims barely turn", above=1)
    max_tokens: int = option(131072, "positions", low=1024)

    def __post_init__(self) -> None:
        least, most = start.PAST_DIM + start.CODE_DIM + 1, start.PAST_DIM + MARK
        if not least <= self.hidden <= most:
            raise ValueError(
                f"hidden must be from {least} (words hold more than a code) to {most} (one head "
                f"carries the words), got {self.hidden}"
            )


LAYERS = 5  # the first looks back, each of the others has its circuits
HEADS, KV_HEADS, HEAD_DIM = 4, 2, 128
NOISE = 3e-4  # std of weights that no circuit sets: more would blur where heads look back


def build(shape: Shape, tokenizer: object, seed: int) -> Qwen2ForCausalLM:
    """The model in float32 at its starting point; ``seed`` draws every random part."""
    torch.manual_seed(seed)
    config = Qwen2Config(
        vocab_size=len(tokenizer),  # type: ignore[arg-type]
        hidden_size=shape.hidden,
        intermediate_size=shape.mlp,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        num_key_value_heads=KV_HEADS,
        head_dim=HEAD_DIM,
        max_position_embeddings=shape.max_tokens,
        rope_parameters={"rope_type": "default", "rope_theta": shape.theta},
        rms_norm_eps=1e-5,
        tie_word_embeddings=True,
        bos_token_id=tokenizer.bos_token_id,  # type: ignore[attr-defined]
        eos_token_id=tokenizer.eos_token_id,  # type: ignore[attr-defined]
        pad_token_id=tokenizer.pad_token_id,  # type: ignore[attr-defined]
    )
    model = Qwen2ForCausalLM(config)
    with torch.no_grad():
        _start(model, shape, tokenizer)
    return model


def _start(model: Qwen2ForCausalLM, shape: Shape, tokenizer: object) -> None:
    layout, rotary = start.Layout(shape.hidden), start.Rotary(HEAD_DIM, shape.theta)
    vocab, first = tokenizer.get_vocab(), tokenizer.bos_token_id  # type: ignore[attr-defined]
    codes = start.Codes(vocab, first, layout)
    model.model.embed_tokens.weight.copy_(codes.table)
    model.model.norm.weight.zero_()  # answers are read from the words alone
    model.model.norm.weight[layout.words] = 1.0
    for layer in model.model.layers:
        attention = layer.self_attn
        for projection in (attention.q_proj, attention.k_proj, attention.v_proj):
            projection.bias.zero_()
            projection.weight.normal_(std=NOISE)
        attention.o_proj.weight.normal_(std=NOISE)
        # nothing but what the circuits say: large gains would carry noise from the sink on
        attention.v_proj.weight.zero_()
        layer.mlp.down_proj.weight.zero_()
    layers = list(model.model.layers)
    start.look_back(layers, rotary, layout)
    # what fills a layer, the power that the layers before have added, how many flags its keys have
    fills = (
        (circuits.notice, -start.FAR, 2),
        (circuits.ask_and_next, 0.0, 6),
        (circuits.hop_and_count, 0.1, 6),
        (circuits.match, 0.3, 4),
    )
    for layer, (fill, found, flags) in zip(layers[1:], fills, strict=True):
        fill(Layer(layer, rotary, layout, codes, found, flags))
