"""Rotary embeddings whose factors depend on the length of the text: fixed once per session.

For longrope and dynamic NTK transformers chooses the factors in every forward, from that call's
positions. So keys of two chunks of one prompt may be rotated by different factors, and a long row
changes its neighbours. Here each row keeps the factors of its own final length (prompt and answer),
as one forward over all of its tokens would choose them.
"""

import copy
from collections.abc import Callable
from contextlib import AbstractContextManager
from functools import partial
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from retrobench.engine.forwards import replaced_forwards

_modules: WeakKeyDictionary[nn.Module, list[nn.Module]] = WeakKeyDictionary()
_fixed: WeakKeyDictionary[nn.Module, dict[tuple[Any, ...], Any]] = WeakKeyDictionary()
_KEPT = 64  # lengths whose factors are kept for a model


def varies(model: nn.Module) -> bool:
    """Whether the model chooses rope factors by length."""
    return bool(_varying(model))


def fixed_rope(model: nn.Module, row_tokens: tuple[int, ...]) -> AbstractContextManager[None]:
    """Inside, each row of a batch has the rope factors of a text of so many tokens."""
    return replaced_forwards({module: _by_row(module, row_tokens) for module in _varying(model)})


def _by_row(module: nn.Module, row_tokens: tuple[int, ...]) -> Callable[..., Any]:
    """A forward in the place of the module's own."""

    def forward(x: Tensor, position_ids: Tensor, layer_type: str | None = None) -> Any:
        if position_ids.dim() != 2:
            raise ValueError(
                f"{type(module).__name__} chooses its factors by length and takes positions of "
                f"{position_ids.dim()} axes, which is not supported; use another rope_type"
            )
        kind = {} if layer_type is None else {"layer_type": layer_type}
        position_BT = position_ids.expand(len(row_tokens), -1)
        parts = []
        for row, tokens in enumerate(row_tokens):
            ready, last_11 = _of_length(module, tokens, x, kind)
            # the last position decides, for modules that look at the positions of each call
            given_1T = torch.cat([position_BT[row : row + 1], last_11], 1)
            parts.append(ready(x[:1], given_1T, **kind))
        if isinstance(parts[0], Tensor):
            return torch.cat(parts)[:, :-1]
        return tuple(torch.cat(part)[:, :-1] for part in zip(*parts, strict=True))

    return forward


def _of_length(
    module: nn.Module, tokens: int, x: Tensor, kind: dict[str, str]
) -> tuple[Callable[..., Any], Tensor]:
    """The module with the factors of a text of so many tokens for good, and the last position."""
    made = _fixed.setdefault(module, {})
    key = (*kind.values(), tokens, x.device)
    if key not in made:
        fresh, last_11 = _pristine(module), torch.tensor([[tokens - 1]], device=x.device)
        run = partial(type(module).forward, fresh)
        run(x[:1], last_11, **kind)
        same = isinstance(fresh.rope_type, dict)
        fresh.rope_type = dict.fromkeys(fresh.rope_type, "fixed") if same else "fixed"
        if len(made) >= _KEPT:
            made.clear()
        made[key] = run, last_11
    return made[key]


def _pristine(module: nn.Module) -> Any:
    """A copy with the factors that it had before any forward."""
    own = module.__dict__.pop("forward")
    fresh: Any = copy.deepcopy(module)
    module.__dict__["forward"] = own
    for name in list(vars(fresh)):
        if name.endswith("max_seq_len_cached"):
            setattr(fresh, name, fresh.original_max_seq_len)
    for name, factors in list(fresh.named_buffers()):
        original = getattr(fresh, name.replace("inv_freq", "original_inv_freq"), None)
        if original is not None and "original" not in name:
            setattr(fresh, name, original.to(factors.device).clone())
    return fresh


def _varying(model: nn.Module) -> list[nn.Module]:
    """The model's rotary embeddings that look at positions before they choose factors."""
    if model not in _modules:
        _modules[model] = [module for module in model.modules() if _varies(module)]
    return _modules[model]


def _varies(module: nn.Module) -> bool:
    kinds = getattr(module, "rope_type", None)
    kinds = kinds.values() if isinstance(kinds, dict) else (kinds,)
    return any(isinstance(kind, str) and _by_length(kind) for kind in kinds)


def _by_length(kind: str) -> bool:
    return kind == "longrope" or "dynamic" in kind
