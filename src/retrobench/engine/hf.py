"""Adapter to transformers: one attention function, one mask function, one pass-through cache layer.

No model is forked or patched. The session travels as a keyword of the model's forward and reaches
the attention function; full-attention layers hand their new keys and values through untouched
because the method owns them; sliding-window layers keep the model's own cache.
"""

from __future__ import annotations

from typing import Any, Protocol

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface, DynamicCache, PreTrainedModel
from transformers.cache_utils import DynamicLayer
from transformers.masking_utils import flash_attention_mask

from retrobench.core.method import AttentionArgs
from retrobench.engine.attention.math import causal

NAME = "retrobench"


class AttentionOwner(Protocol):
    """What the attention function asks of a session."""

    def attend(
        self, layer: int, q_BHTD: Tensor, k_BGTD: Tensor, v_BGTD: Tensor, args: AttentionArgs
    ) -> Tensor:
        """Attention of the new tokens of a served layer, ``o_BHTD``."""
        ...


class PassThroughLayer(DynamicLayer):
    """Counts tokens and returns new keys and values as they came: the method stores them."""

    def __init__(self) -> None:
        super().__init__()
        self.num_tokens = 0

    def lazy_initialization(self, key_states: Tensor, *args: Any) -> None:
        """Nothing to allocate (the signature differs between transformers versions)."""
        self.dtype, self.device = key_states.dtype, key_states.device
        self.is_initialized = True

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Count and pass through."""
        if not self.is_initialized:
            self.lazy_initialization(key_states)
        self.num_tokens += key_states.shape[2]
        return key_states, value_states

    def get_seq_length(self) -> int:
        """Tokens seen so far, padding included."""
        return self.num_tokens

    def get_mask_sizes(self, query: Any) -> tuple[int, int]:
        """(KV length, offset) for a query of T tokens (a count, or positions before 5.x)."""
        num_query = query if isinstance(query, int) else query.shape[0]
        return self.num_tokens + num_query, 0


def attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    softcap: float | None = None,
    s_aux: Tensor | None = None,
    session: AttentionOwner | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """The registered attention function: ``(o_BTHD, None)``."""
    if session is None:
        raise RuntimeError("this model runs inside a retrobench session only (session=... missing)")
    layer = int(module.layer_idx)  # type: ignore[arg-type]
    if s_aux is not None:
        raise ValueError(
            f"layer {layer} ({type(module).__name__}) uses attention sinks (s_aux), which no "
            "method supports; use a model without them"
        )
    scale = query.shape[-1] ** -0.5 if scaling is None else float(scaling)
    args = AttentionArgs(scale=scale, softcap=softcap)
    if sliding_window is None:
        out = session.attend(layer, query, key, value, args)
    else:
        valid = attention_mask if attention_mask is not None and attention_mask.dim() == 2 else None
        if valid is not None:
            valid = valid[:, -key.shape[2] :]
        out = causal(query, key, value, args, valid, window=sliding_window)
    return out.transpose(1, 2).contiguous(), None


AttentionInterface.register(NAME, attention)
# A 2-D padding mask or None reaches us, never a q x kv matrix. Without this registration the mask
# would be None and sliding windows with left padding silently wrong.
AttentionMaskInterface.register(NAME, flash_attention_mask)


def attach(model: PreTrainedModel) -> None:
    """Select our attention function; ValueError if the model does not follow the interface."""
    family = type(model).__name__
    try:
        model.set_attn_implementation(NAME)
    except Exception as error:
        raise ValueError(f"model {family} does not support attention functions: {error}") from error
    config = model.config.get_text_config()
    if getattr(config, "_attn_implementation", None) != NAME:
        raise ValueError(f"model {family} ignores the attention interface; it cannot be served")


def make_cache(model: PreTrainedModel) -> tuple[DynamicCache, tuple[int, ...]]:
    """A cache whose full-attention layers pass through, and the indexes of those layers.

    ValueError if the model has no such layer, naming what it has.
    """
    config = model.config.get_text_config()
    cache = DynamicCache(config=config)
    if not cache.layers:
        cache.layers = [DynamicLayer() for _ in range(config.num_hidden_layers)]  # type: ignore
    served = tuple(i for i, layer in enumerate(cache.layers) if type(layer) is DynamicLayer)
    if not served:
        kinds = sorted({type(layer).__name__ for layer in cache.layers})
        raise ValueError(
            f"model {type(model).__name__} has no full-attention layer to serve "
            f"(its cache layers are {', '.join(kinds)})"
        )
    for i in served:
        cache.layers[i] = PassThroughLayer()
    return cache, served


def kv_geometry(model: PreTrainedModel) -> tuple[int, int, int]:
    """(query heads, KV heads, head dim) of the model's text config."""
    config = model.config.get_text_config()
    heads = config.num_attention_heads
    kv_heads = getattr(config, "num_key_value_heads", None) or heads
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // heads
    return heads, kv_heads, head_dim


def text_dtype(model: PreTrainedModel) -> str:
    """The model's dtype by name, e.g. ``bfloat16``."""
    return str(model.dtype).removeprefix("torch.")


def context_limit(model: PreTrainedModel) -> int | None:
    """Longest context that the config claims, in tokens (None if it does not say)."""
    return getattr(model.config.get_text_config(), "max_position_embeddings", None)


def stop_ids(model: PreTrainedModel, tokenizer: Any) -> frozenset[int]:
    """Every end-of-sequence id of generation config, config and tokenizer."""
    found: set[int] = set()
    generation = getattr(model, "generation_config", None)
    sources = (getattr(generation, "eos_token_id", None), model.config.eos_token_id)
    for source in (*sources, getattr(tokenizer, "eos_token_id", None)):
        if source is not None:
            found.update(source if isinstance(source, (list, tuple)) else [source])
    return frozenset(found)


def is_finite(logits: Tensor) -> bool:
    """Whether no logit is NaN and some are finite."""
    return bool(torch.isfinite(logits).any()) and not bool(torch.isnan(logits).any())
