"""What methods may ask of a model; queries of a layer computed from another layer's input.

A layer's attention runs up to the point where it hands over its queries, so that projections,
biases, query norms and rotary embeddings of any family are the model's own.
"""

import hashlib
import inspect
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor
from transformers import PreTrainedModel

from retrobench.core.method import AttentionArgs
from retrobench.engine import hf
from retrobench.engine.rope import fixed_rope


class _Captured(Exception):
    """Ends a layer's attention once its queries and keys are known."""

    def __init__(self, q_BHTD: Tensor, k_BGTD: Tensor) -> None:
        super().__init__()
        self.q_BHTD, self.k_BGTD = q_BHTD, k_BGTD


class _Capture:
    """Stands where a session would: takes the queries."""

    def __init__(self, layer: int) -> None:
        self.layers = (layer,)

    def attend(
        self, layer: int, q_BHTD: Tensor, k_BGTD: Tensor, v_BGTD: Tensor, args: AttentionArgs
    ) -> Tensor:
        raise _Captured(q_BHTD, k_BGTD)


class ModelQueries:
    """The ``ModelView`` of a loaded model.

    ``rope_tokens`` is how long each row will get (``engine.rope``).
    """

    def __init__(
        self, model: PreTrainedModel, managed: tuple[int, ...], rope_tokens: tuple[int, ...] = ()
    ) -> None:
        self._model, self._managed = model, frozenset(managed)
        self._rope_tokens = rope_tokens
        self.computing = False
        self._context: dict[str, Any] = {}

    @cached_property
    def attention(self) -> Any:
        """The layers' attention modules; ValueError for a model that hides them."""
        return hf.attention_modules(self._model)

    @property
    def weights_id(self) -> str:
        """Content hash of the weights."""
        return weights_id(self._model)

    def observe(self, layer: int, kwargs: dict[str, Any]) -> None:
        """Keep the rotary embeddings of this forward's newest managed layer (some mix several)."""
        if layer == 0:
            self._context = {}
        if layer in self._managed:
            names = ("position_embeddings", "position_ids")
            self._context = {name: kwargs[name] for name in names if name in kwargs}

    def queries(self, layer: int, hidden_BTM: Tensor) -> Tensor | None:
        """Post-RoPE ``q_BHTD``. Costs the layer's q, k and v projections."""
        if not self._context:
            return None
        self.computing = True
        try:
            return captured(self.attention[layer], layer, hidden_BTM, self._context)[0]
        finally:
            self.computing = False

    def projection_bytes(self, layer: int) -> int:
        """All weights of a layer's attention but its output projection."""
        parameters = self.attention[layer].named_parameters()
        return sum(p.nbytes for name, p in parameters if "o_proj" not in name)

    def attention_module(self, layer: int) -> Any:
        """The attention module of a layer."""
        return self.attention[layer]

    def rotary(self, layer: int, like: Tensor, position_BT: Tensor) -> tuple[Tensor, Tensor]:
        """Cosines and sines at positions of each row, by the model's own module."""
        decoder: Any = self._model.get_decoder()
        module = getattr(decoder, "rotary_emb", None)
        if module is None:
            raise ValueError(f"model {type(self._model).__name__} has no rotary embedding")
        kind = {}
        if "layer_type" in inspect.signature(type(module).forward).parameters:
            kind = {"layer_type": decoder.config.layer_types[layer]}
        with fixed_rope(self._model, self._rope_tokens):
            return module(like, position_BT, **kind)


def captured(
    attention: Any, layer: int, hidden_BTM: Tensor, context: dict[str, Any]
) -> tuple[Tensor, Tensor]:
    """``(q_BHTD, k_BGTD)`` that a layer's attention hands over for these inputs."""
    try:
        with hf.serving(_Capture(layer)):
            attention(
                hidden_states=hidden_BTM, attention_mask=None, past_key_values=None, **context
            )
    except _Captured as ended:
        return ended.q_BHTD, ended.k_BGTD
    raise RuntimeError(f"layer {layer} computed its attention without handing over queries")


def weights_id(
    model: PreTrainedModel, stored: Callable[[str], Tensor] | None = None, samples: int = 64
) -> str:
    """Hash of names, shapes and an even sample of every parameter, the same on any device.

    Values are compared as bfloat16, so that float32 and bfloat16 copies of a checkpoint agree.
    ``stored`` brings the values of a parameter where the model itself has none (``meta``).
    """
    recorded = getattr(model, "recorded_weights_id", None)
    if recorded is not None:  # a trace
        return recorded
    hasher = hashlib.sha256()
    for name, parameter in model.named_parameters():
        flat = (parameter.detach() if stored is None else stored(name)).reshape(-1)
        step = max(1, flat.numel() // samples)
        values = flat[::step][:samples].to(parameter.dtype)
        values = values.to("cpu", torch.bfloat16).view(torch.int16)
        hasher.update(f"{name}{tuple(parameter.shape)}".encode())
        hasher.update(values.numpy().tobytes())
    return hasher.hexdigest()[:16]


def stored_weights_id(model: PreTrainedModel, files: Sequence[Path]) -> str | None:
    """``weights_id`` of safetensors files, of which a few bytes a tensor are read.

    None where the files name or shape their tensors in another way than the model does.
    """
    try:
        with ExitStack() as opened:
            found = [opened.enter_context(safe_open(file, "pt")) for file in files]
            where = {name: file for file in found for name in file.keys()}  # noqa: SIM118
            for name, parameter in model.named_parameters():
                shape = tuple(parameter.shape)
                if name not in where or tuple(where[name].get_slice(name).get_shape()) != shape:
                    return None
            return weights_id(model, lambda name: where[name].get_tensor(name))
    except (OSError, SafetensorError):
        return None
