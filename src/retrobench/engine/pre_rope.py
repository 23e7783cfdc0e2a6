"""The rotary factors of a prompt, and whether a model's pre-RoPE keys can be had with them."""

from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from retrobench.core.method import AttentionArgs
from retrobench.core.words import first_line
from retrobench.engine import hf
from retrobench.engine.attention.rotary import unrotate
from retrobench.engine.model_cache import make_cache
from retrobench.engine.queries import captured

_NAMES = ("position_embeddings", "position_ids")


class RotaryFactors:
    """Cosines and sines that each layer was given, chunk by chunk; layers share their memory."""

    computing = False

    def __init__(self) -> None:
        self._chunks: dict[int, list[tuple[Tensor, Tensor]]] = {}
        self._joined: dict[int, tuple[Tensor, Tensor]] = {}  # by the identity of the first chunk

    def observe(self, layer: int, kwargs: dict[str, Any]) -> None:
        """Keep the factors of a layer's call."""
        self._chunks.setdefault(layer, []).append(kwargs["position_embeddings"])

    def of(self, layer: int) -> tuple[Tensor, Tensor]:
        """``(cos_BSD, sin_BSD)`` of all tokens."""
        chunks = self._chunks[layer]
        key = id(chunks[0][0])
        if key not in self._joined:
            cos, sin = (torch.cat(parts, 1) for parts in zip(*chunks, strict=True))
            self._joined[key] = cos, sin
        return self._joined[key]


class Watcher:
    """Stands where a session would: keeps each layer's inputs, its keys, and the shapes of calls.

    ``calls``: (layer, (query heads, KV heads, width)), one for each call of a managed layer.
    """

    def __init__(self, layers: tuple[int, ...], device: torch.device) -> None:
        self.layers, self.length, self.computing = layers, 0, False
        self.ids_BS = torch.tensor([[5, 6, 7, 5, 6]], device=device)
        self.pad_tokens, self.rope_tokens = (0,), (5,)
        self.calls: list[tuple[int, tuple[int, int, int]]] = []
        self.keys: dict[int, Tensor] = {}
        self.inputs: dict[int, Tensor] = {}
        self.given: dict[int, dict[str, Any]] = {}

    def attend(
        self, layer: int, q_BHTD: Tensor, k_BGTD: Tensor, v_BGTD: Tensor, args: AttentionArgs
    ) -> Tensor:
        self.calls.append((layer, (q_BHTD.shape[1], k_BGTD.shape[1], k_BGTD.shape[3])))
        self.keys[layer] = k_BGTD
        return torch.zeros_like(q_BHTD)

    def layer_input(self, layer: int, hidden_BTM: Tensor) -> None:
        self.inputs[layer] = hidden_BTM

    def observe(self, layer: int, kwargs: dict[str, Any]) -> None:
        self.given[layer] = {name: kwargs[name] for name in _NAMES if name in kwargs}


@torch.inference_mode()
def why_no_pre_rope_keys(model: PreTrainedModel) -> str:
    """Why RoPE cannot be undone on a model's keys; empty if it can. It is run to find out."""
    hooks: list[Any] = []
    try:
        cache, layers = make_cache(model)
        watcher = Watcher(layers, model.device)
        hf.attach(model)
        modules = hf.attention_modules(model)
        hooks = hf.hook_layer_inputs(model, watcher.layer_input, watcher)
        hf.forward(model, watcher.ids_BS, cache, watcher)
        watcher.computing = True
        reasons = (_differs(layer, modules[layer], watcher) for layer in layers)
        return next((reason for reason in reasons if reason), "")
    except Exception as error:  # an architecture that works otherwise is not refused for this
        return first_line(error)
    finally:
        for hook in hooks:
            hook.remove()


def _differs(layer: int, attention: Any, watcher: Watcher) -> str:
    """Why a layer's keys without RoPE are not those that it makes without it; empty if they are."""
    given, key = watcher.given.get(layer, {}), watcher.keys[layer]
    factors = given.get("position_embeddings")
    if not isinstance(factors, tuple) or len(factors) != 2:
        return f"layer {layer} is given no rotary factors"
    cos, sin = factors
    if cos.shape[-1] != key.shape[-1]:
        return f"layer {layer} turns {cos.shape[-1]} of the {key.shape[-1]} channels of its keys"
    still = {**given, "position_embeddings": (torch.ones_like(cos), torch.zeros_like(sin))}
    before = captured(attention, layer, watcher.inputs[layer], still)[1]
    if torch.allclose(unrotate(key, cos, sin), before.float(), rtol=1e-3, atol=1e-4):
        return ""
    return f"layer {layer} does not turn channel c of its keys with channel c + D/2"
