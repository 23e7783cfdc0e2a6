"""Prefill that streams: a layer's index is built while the next layer computes.

The whole prompt goes through one layer before the next one begins. So the keys and values of two
layers at most wait for a method: those that are being computed, and those that it builds from
(``overlap``). One session alone must use the prompt.
"""

from collections.abc import Sequence
from typing import Any

import torch
from transformers import PreTrainedModel

from retrobench.core.method import AttentionArgs, PromptLayer
from retrobench.engine.model_cache import make_cache
from retrobench.engine.prefill import PrefilledPrompt, pad_left, prefill, split_tail
from retrobench.engine.recorder import LayerTaker
from retrobench.engine.shape import kv_shape


def streamed_prompt(
    model: PreTrainedModel,
    prompts: Sequence[Sequence[int]],
    *,
    tail_tokens: int = 0,
    room: int = 0,
    **options: Any,
) -> PrefilledPrompt:
    """A prompt whose prefill runs when a session builds on it; ``options`` as of ``prefill``.

    Its layers have shapes and no data. Until ``run`` there are no logits.
    """
    ids_BS, pads = pad_left(prompts, model.device)
    split = split_tail(ids_BS.shape[1], tail_tokens)
    cache, _ = make_cache(model)
    shape = kv_shape(model, pads, ids_BS.shape[1], room)
    size = (shape.batch, shape.num_kv_heads, split, shape.head_dim)
    nothing = torch.empty(size, dtype=getattr(torch, shape.dtype), device="meta")
    layer = PromptLayer(k_BGSD=nothing, v_BGSD=nothing, args=AttentionArgs(scale=1.0))

    def run(take: LayerTaker) -> None:
        made = prefill(model, prompts, tail_tokens=tail_tokens, room=room, on_layer=take, **options)
        prompt.cache.__dict__.update(made.cache.__dict__)
        prompt.logits_BV, prompt.seconds, prompt.layers = made.logits_BV, made.seconds, {}
        prompt.attention |= made.attention

    prompt = PrefilledPrompt(
        ids_BS=ids_BS,
        pad_tokens=pads,
        num_tokens=split,
        layers=dict.fromkeys(shape.layers, layer),
        cache=cache,
        logits_BV=torch.empty(0),
        rope_tokens=tuple(ids_BS.shape[1] + room - pad for pad in pads),
        num_heads=shape.num_heads,
        origin="streamed",
        run=run,
    )
    return prompt
