"""Feed-forward modules of a long prompt, a piece at a time."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from functools import partial
from typing import Any

from torch import Tensor, nn
from transformers import PreTrainedModel

from retrobench.engine.forwards import replaced_forwards


def feed_forward_pieces(model: PreTrainedModel, tokens: int) -> AbstractContextManager[None]:
    """Inside, feed-forward modules take at most so many tokens at a time, for their activations.

    They are several times as wide as the model; each token goes through them by itself.
    """
    found = (getattr(layer, "mlp", None) for layer in getattr(model.get_decoder(), "layers", ()))
    modules: list[Any] = [module for module in found if isinstance(module, nn.Module)]
    return replaced_forwards({m: partial(_in_pieces, m.forward, tokens) for m in modules})


def _in_pieces(forward: Callable[..., Any], tokens: int, hidden: Tensor, *more: Any) -> Any:
    """``forward`` of ``hidden_BTM`` piece by piece, where it takes and gives nothing else."""
    if hidden.dim() != 3 or hidden.shape[1] <= tokens or more:
        return forward(hidden, *more)
    pieces = hidden.split(tokens, 1)
    first = forward(pieces[0])
    if not isinstance(first, Tensor):
        return forward(hidden)
    out = first.new_empty(hidden.shape[0], hidden.shape[1], first.shape[-1])
    for target, piece in zip(out.split(tokens, 1), pieces, strict=True):
        target.copy_(first if piece is pieces[0] else forward(piece))
    return out
