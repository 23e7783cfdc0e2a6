"""Adapter to transformers: one attention function, one mask function, one forward.

No model is forked or patched. ``forward`` names the owner of its attention (a prefill, or a
session) for the time of the call, and the attention function hands the new queries, keys and values
of managed layers to it. All other layers keep the model's own cache, mask and window.
"""

import contextlib
import inspect
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from functools import lru_cache
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.masking_utils import causal_mask_function, flash_attention_mask, sdpa_mask

from retrobench.core.method import AttentionArgs
from retrobench.engine.attention.causal import causal
from retrobench.engine.model_cache import ServedCache, Unserved, fully_managed
from retrobench.engine.rope import fixed_rope

NAME = "retrobench"


class MethodBypassed(RuntimeError):
    """A managed layer was not reached in a step: the model computes its attention by itself."""


class AttentionOwner(Protocol):
    """What computes the attention of managed layers: a prefill, or a session.

    ``layers`` are the managed ones, ``ids_BS`` is the whole prompt, ``length`` how many tokens went
    through the model before. ``rope_tokens`` is how long each row will get (``engine.rope``).
    """

    layers: tuple[int, ...]
    ids_BS: Tensor
    length: int
    pad_tokens: tuple[int, ...]
    rope_tokens: tuple[int, ...]

    def attend(
        self, layer: int, q_BHTD: Tensor, k_BGTD: Tensor, v_BGTD: Tensor, args: AttentionArgs
    ) -> Tensor:
        """Attention of the new tokens of a managed layer, ``o_BHTD``."""
        ...

    def layer_input(self, layer: int, hidden_BTM: Tensor) -> None:
        """The input of a layer's attention, where somebody asked for it."""
        ...


_serving: ContextVar[tuple[Any, Any]] = ContextVar("serving", default=(None, None))


@contextlib.contextmanager
def serving(owner: Any, cache: ServedCache | None = None) -> Iterator[None]:
    """Attention calls inside go to this owner. (Not every model passes keywords down to them.)"""
    token = _serving.set((owner, cache))
    try:
        yield
    finally:
        _serving.reset(token)


def current_owner() -> Any:
    """Who serves the attention of the forward that is going on."""
    return _serving.get()[0]


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
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """The registered attention function: ``(o_BTHD, None)``. ValueError for what nobody serves."""
    owner, cache = _serving.get()
    if owner is None:
        raise RuntimeError("this model runs inside a retrobench session only")
    passed = None if cache is None else cache.newest.take(key)
    layer: Any = getattr(module, "layer_idx", None) if passed is None else passed
    where = f"layer {layer} ({type(module).__name__})"
    if s_aux is not None:
        raise Unserved(
            f"{where} uses attention sinks (s_aux), which no method supports; use a model "
            "without them"
        )
    bias = sorted(name for name, value in kwargs.items() if "bias" in name and value is not None)
    if bias:
        raise Unserved(f"{where} adds {', '.join(bias)} to its logits, which no method supports")
    scale = query.shape[-1] ** -0.5 if scaling is None else float(scaling)
    args = AttentionArgs(scale=scale, softcap=softcap)
    has_matrix = attention_mask is not None and attention_mask.dim() == 4
    if layer in owner.layers:
        if has_matrix:
            raise Unserved(
                f"{where} adds a mask or bias of its own to full attention, which no method "
                "supports; use a model without it"
            )
        width = value.shape[-1]
        out = owner.attend(int(layer), *_equally_wide(query, key, value), args)[..., :width]
    elif has_matrix:
        out = causal(query, key, value, args, mask_B1TS=attention_mask)
    elif sliding_window is not None:
        valid = attention_mask if attention_mask is not None and attention_mask.dim() == 2 else None
        if valid is not None:
            valid = valid[:, -key.shape[2] :]
        out = causal(query, key, value, args, valid, window=sliding_window)
    else:
        raise Unserved(
            f"{where} computes full attention with keys that are not in the model's KV cache; "
            "no method can serve it"
        )
    return out.transpose(1, 2).contiguous(), None


def _equally_wide(*parts: Tensor) -> list[Tensor]:
    """Queries, keys and values, of which zeros make the narrower ones as wide (MLA)."""
    widest = max(part.shape[-1] for part in parts)
    return [F.pad(x, (0, widest - x.shape[-1])) if x.shape[-1] < widest else x for x in parts]


def mask(mask_function: Callable = causal_mask_function, **sizes: Any) -> Tensor | None:
    """The registered mask function: a padding mask or None, never a q x kv matrix ...

    ... except for layers that see neither everything nor a sliding window (chunks, images).
    Without the registration the mask would be None and sliding windows with left padding wrong.
    """
    if mask_function is causal_mask_function or _is_sliding(mask_function):
        return flash_attention_mask(mask_function=mask_function, **sizes)
    return sdpa_mask(mask_function=mask_function, **{**sizes, "allow_is_causal_skip": False})


def _is_sliding(mask_function: Callable) -> bool:
    """Whether a mask is a causal sliding window and nothing else."""
    parts = inspect.getclosurevars(mask_function).nonlocals.get("mask_functions", ())
    names = [getattr(part, "__qualname__", "").split(".")[0] for part in parts]
    return names == ["sliding_window_overlay", "causal_mask_function"]


AttentionInterface.register(NAME, attention)
AttentionMaskInterface.register(NAME, mask)


def attach(model: PreTrainedModel) -> None:
    """Select our attention function; ValueError if the model does not follow the interface."""
    family = type(model).__name__
    try:
        model.set_attn_implementation(NAME)
    except Exception as error:
        raise Unserved(f"model {family} does not support attention functions: {error}") from error
    config = model.config.get_text_config()
    if getattr(config, "_attn_implementation", None) != NAME:
        raise Unserved(f"model {family} ignores the attention interface; it cannot be managed")


def forward(
    model: PreTrainedModel,
    ids_BT: Tensor,
    cache: ServedCache,
    owner: AttentionOwner,
    position_BT: Tensor | None = None,
) -> Tensor:
    """The model on new tokens; float32 logits ``BV`` of the last one.

    Managed layers need no mask: their attention knows the padding. The others get one.
    """
    padding = None
    if position_BT is None:
        end = owner.length + ids_BT.shape[1]
        pad_B1 = torch.tensor(owner.pad_tokens, device=ids_BT.device)[:, None]
        position = torch.arange(end, device=ids_BT.device)
        position_BT = (position[owner.length :] - pad_B1).clamp_min(0)
        if any(owner.pad_tokens) and not fully_managed(cache, owner.layers):
            padding = (position >= pad_B1).long()
    given = {
        "input_ids": ids_BT,
        "attention_mask": padding,
        "position_ids": position_BT,
        "past_key_values": cache,
        "use_cache": True,
        "logits_to_keep": 1,
    }
    names = _parameters(type(model))
    if names is not None:
        given = {name: value for name, value in given.items() if name in names}
    with serving(owner, cache), fixed_rope(model, owner.rope_tokens):
        output = model(**given)
    return output.logits[:, -1].float()


@lru_cache
def _parameters(model_class: type) -> frozenset[str] | None:
    """Names that a model's forward takes; None for any."""
    parameters = inspect.signature(model_class.forward).parameters  # type: ignore[attr-defined]
    if any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters.values()):
        return None
    return frozenset(parameters)


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
