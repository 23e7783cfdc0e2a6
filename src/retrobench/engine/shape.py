"""The KV cache that a session needs, from the model's config."""

from __future__ import annotations

import dataclasses

from transformers import PreTrainedModel

from retrobench.core.shapes import KVShape
from retrobench.engine import hf


def kv_shape(
    model: PreTrainedModel, pad_tokens: tuple[int, ...], prompt_tokens: int, new_tokens: int
) -> KVShape:
    """Shape of the managed layers' cache for a session of this size."""
    heads, kv_heads, head_dim = hf.kv_geometry(model)
    return KVShape(
        pad_tokens=pad_tokens,
        layers=hf.make_cache(model)[1],
        num_heads=heads,
        num_kv_heads=kv_heads,
        head_dim=head_dim,
        prompt_tokens=prompt_tokens,
        max_tokens=prompt_tokens + new_tokens,
        dtype=hf.text_dtype(model),
        device=str(model.device),
    )


def split_layers(shape: KVShape, dense: tuple[int, ...]) -> tuple[KVShape, KVShape]:
    """Shapes of the dense layers and of the others; ValueError if either is not there."""
    strange = sorted(set(dense) - set(shape.layers))
    if dense and (strange or len(set(dense)) >= len(shape.layers)):
        raise ValueError(
            f"engine.dense_layers={','.join(map(str, dense))}: name some, not all, of the model's "
            f"layers {shape.layers[0]}-{shape.layers[-1]}"
        )
    kept = tuple(layer for layer in shape.layers if layer in dense)
    left = tuple(layer for layer in shape.layers if layer not in dense)
    return dataclasses.replace(shape, layers=kept), dataclasses.replace(shape, layers=left)
