"""Adapter to transformers: one attention function, one mask function, one pass-through cache layer.

No model is forked or patched. The session travels as a keyword of the model's forward and reaches
the attention function; full-attention layers hand their new keys and values through untouched
because the method owns them; sliding-window layers keep the model's own cache.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface, DynamicCache, PreTrainedModel
from transformers.cache_utils import DynamicLayer
from transformers.masking_utils import flash_attention_mask

from retrobench.core.method import AttentionArgs
from retrobench.engine.attention.exact import causal

NAME = "retrobench"


class MethodBypassed(RuntimeError):
    """A managed layer was not reached in a step: the model computes its attention by itself."""


class AttentionOwner(Protocol):
    """What computes the attention of managed layers: a prefill, or a session.

    ``ids_BS`` is the whole prompt, ``length`` how many tokens went through the model before.
    """

    ids_BS: Tensor
    length: int
    pad_tokens: tuple[int, ...]

    def attend(
        self, layer: int, q_BHTD: Tensor, k_BGTD: Tensor, v_BGTD: Tensor, args: AttentionArgs
    ) -> Tensor:
        """Attention of the new tokens of a managed layer, ``o_BHTD``."""
        ...

    def layer_input(self, layer: int, hidden_BTM: Tensor) -> None:
        """The input of a layer's attention, where somebody asked for it."""
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
        raise ValueError(f"model {family} ignores the attention interface; it cannot be managed")


def make_cache(model: PreTrainedModel) -> tuple[DynamicCache, tuple[int, ...]]:
    """A cache whose full-attention layers pass through, and the indexes of those layers.

    ValueError if the model has no such layer, naming what it has.
    """
    config = model.config.get_text_config()
    cache = DynamicCache(config=config)
    if not cache.layers:
        cache.layers = [DynamicLayer() for _ in range(config.num_hidden_layers)]  # type: ignore
    managed = tuple(i for i, layer in enumerate(cache.layers) if type(layer) is DynamicLayer)
    if not managed:
        kinds = sorted({type(layer).__name__ for layer in cache.layers})
        raise ValueError(
            f"model {type(model).__name__} has no full-attention layer to serve "
            f"(its cache layers are {', '.join(kinds)})"
        )
    for i in managed:
        cache.layers[i] = PassThroughLayer()
    return cache, managed


def forward(
    model: PreTrainedModel,
    ids_BT: Tensor,
    cache: DynamicCache,
    owner: Any,
    position_BT: Tensor | None = None,
) -> Tensor:
    """The model on new tokens; float32 logits ``BV`` of the last one.

    Managed layers need no mask: their attention knows the padding. The others get one.
    """
    mask = None
    if position_BT is None:
        end = owner.length + ids_BT.shape[1]
        pad_B1 = torch.tensor(owner.pad_tokens, device=ids_BT.device)[:, None]
        position = torch.arange(end, device=ids_BT.device)
        position_BT = (position[owner.length :] - pad_B1).clamp_min(0)
        if any(owner.pad_tokens) and not all(map(_managed, cache.layers)):
            mask = (position >= pad_B1).long()
    output = model(
        input_ids=ids_BT,
        attention_mask=mask,
        position_ids=position_BT,
        past_key_values=cache,
        use_cache=True,
        logits_to_keep=1,
        session=owner,
    )
    return output.logits[:, -1].float()


def _managed(layer: Any) -> bool:
    return isinstance(layer, PassThroughLayer)


def check_reached(model: PreTrainedModel, layers: tuple[int, ...], reached: set[int]) -> None:
    """MethodBypassed if a managed layer did not ask for its attention."""
    missing = set(layers) - reached
    if missing:
        raise MethodBypassed(
            f"layers {sorted(missing)} of {type(model).__name__} did not reach the method: the "
            "model computes their attention by itself"
        )


def hook_layer_inputs(
    model: PreTrainedModel, listener: Callable[[int, Tensor], None], view: Any = None
) -> list[Any]:
    """Give ``listener`` the input of every layer's attention; handles to remove.

    ``view`` (``ModelQueries``) sees the call's other arguments, and its own calls are left out.
    """

    def hook(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if view is not None and view.computing:
            return
        hidden = args[0] if args else kwargs["hidden_states"]
        if view is not None:
            view.observe(int(module.layer_idx), kwargs)
        listener(int(module.layer_idx), hidden)

    modules = attention_modules(model).values()
    return [module.register_forward_pre_hook(hook, with_kwargs=True) for module in modules]


def attention_modules(model: PreTrainedModel) -> dict[int, Any]:
    """Attention module of every decoder layer; ValueError for a model without ``self_attn``."""
    decoder: Any = model.get_decoder()
    missing = [i for i, layer in enumerate(decoder.layers) if not hasattr(layer, "self_attn")]
    if missing:
        raise ValueError(
            f"model {type(model).__name__}: layers {missing} have no `self_attn`; methods that "
            "need layer inputs cannot serve it"
        )
    return {i: layer.self_attn for i, layer in enumerate(decoder.layers)}


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
