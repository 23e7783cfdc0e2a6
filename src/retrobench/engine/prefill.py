"""Prefill: the prompt once through the model, for any number of methods.

The engine computes prefill attention; methods build their state from its result. So a sweep of N
methods pays for one prefill, and a method cannot change what the model reads. Attention is exact
unless the run asks for a sparse prefill (``engine.sparse_prefill``).
"""

import copy
import dataclasses
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from retrobench.core.method import ALL_INPUTS, ALL_QUERIES, Needs, PromptLayer
from retrobench.core.shapes import KVShape
from retrobench.engine import hf
from retrobench.engine.forwards import replaced_forwards
from retrobench.engine.model_cache import ServedCache, make_cache
from retrobench.engine.recorder import LayerTaker, PromptRecorder
from retrobench.engine.sparse_prefill import SparsePrefill


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


class NotFinite(RuntimeError):
    """The logits held NaN."""


@dataclass(slots=True, kw_only=True)
class PrefilledPrompt:
    """What a prefill leaves: everything that sessions of any method start from.

    ``ids_BS`` is the whole prompt, left-padded; its first ``num_tokens`` were prefilled.
    ``layers`` holds the managed layers, ``cache`` the state of the others (sliding windows),
    ``logits_BV`` those of the last prefilled token. ``rope_tokens`` is how long each row was said
    to get, answer included. ``seconds`` is what it took, ``attention`` the forms that computed its
    attention (``causal_form``, or the name of a sparse prefill), ``computed_frac`` the share of
    attention that a sparse prefill computed.
    """

    ids_BS: Tensor
    pad_tokens: tuple[int, ...]
    num_tokens: int
    layers: dict[int, PromptLayer]
    cache: ServedCache
    logits_BV: Tensor
    rope_tokens: tuple[int, ...]
    num_heads: int
    seconds: float = 0.0
    attention: set[str] = field(default_factory=set)
    computed_frac: float | None = None
    origin: str = "computed"  # computed | disk | streamed
    run: Callable[[LayerTaker], None] | None = None  # streamed: the prefill, still to be done

    def shape(self, new_tokens: int) -> KVShape:
        """The KV cache of a session that adds so many tokens."""
        k_BGSD, tokens = next(iter(self.layers.values())).k_BGSD, self.ids_BS.shape[1]
        return KVShape(
            pad_tokens=self.pad_tokens,
            layers=tuple(sorted(self.layers)),
            num_heads=self.num_heads,
            num_kv_heads=k_BGSD.shape[1],
            head_dim=k_BGSD.shape[3],
            prompt_tokens=tokens,
            max_tokens=tokens + new_tokens,
            dtype=str(k_BGSD.dtype).removeprefix("torch."),
            device=str(self.ids_BS.device),
            tail_tokens=tokens - self.num_tokens,
        )

    @property
    def devices(self) -> dict[int, str]:
        """Where each layer's keys and values are: where its attention is computed."""
        if self.run is not None:
            return dict.fromkeys(self.layers, str(self.ids_BS.device))
        return {layer: str(part.k_BGSD.device) for layer, part in self.layers.items()}

    @property
    def real_tokens(self) -> int:
        """Tokens that were prefilled in all rows, without padding."""
        return sum(max(0, self.num_tokens - pad) for pad in self.pad_tokens)

    def continued(self, ids: Sequence[int]) -> "PrefilledPrompt":
        """The same prefill with other tokens behind it (batch 1)."""
        rest_BS = torch.tensor([list(ids)], device=self.ids_BS.device)
        whole_BS = torch.cat([self.ids_BS[:, : self.num_tokens], rest_BS], 1)
        return dataclasses.replace(self, ids_BS=whole_BS)

    def layer(self, layer: int, last_use: bool) -> PromptLayer:
        """A layer for one method; the last one to ask gets the memory itself."""
        if last_use:
            return self.layers.pop(layer)
        return dataclasses.replace(self.layers[layer], memory=None)

    def fork_cache(self, last_use: bool) -> ServedCache:
        """The unmanaged layers' state for one session, which changes it."""
        return self.cache if last_use else copy.deepcopy(self.cache)

    @property
    def num_bytes(self) -> int:
        """Bytes of everything held for the managed layers."""
        return sum(map(_layer_bytes, self.layers.values()))


def _layer_bytes(layer: PromptLayer) -> int:
    k, v = layer.memory if layer.memory is not None else (layer.k_BGSD, layer.v_BGSD)
    parts = (k, v, layer.q_BHWD, layer.mass_BHS, layer.input_BWM)
    return sum(part.nbytes for part in parts if part is not None)


def prompt_bytes(shape: KVShape, needs: Needs) -> int:
    """Bytes of a prefilled prompt of this shape, before it is there.

    Inputs of layers are taken to be as wide as the queries of all heads.
    """
    tokens, layers = shape.prompt_tokens, len(shape.layers) * shape.batch
    kept = tokens if needs.prompt_queries == ALL_QUERIES else needs.prompt_queries
    kept += tokens if needs.prompt_inputs == ALL_INPUTS else needs.prompt_inputs
    queries = kept * shape.num_heads * shape.head_dim * shape.value_bytes
    mass = 4 * tokens * shape.num_heads * (needs.prompt_mass > 0)
    return shape.kv_bytes_per_token * shape.batch * shape.max_tokens + layers * (queries + mass)


@torch.inference_mode()
def prefill(
    model: PreTrainedModel,
    prompts: Sequence[Sequence[int]],
    *,
    clock: Callable[[], float],
    needs: Needs | None = None,
    chunk_tokens: int = 4096,
    tail_tokens: int = 0,
    room: int = 0,
    on_chunk: Callable[[int], None] | None = None,
    sparse: SparsePrefill | None = None,
    on_layer: LayerTaker | None = None,
) -> PrefilledPrompt:
    """Prefill all but the last ``tail_tokens`` of left-padded prompts, in chunks.

    ``room`` tokens of memory follow the prompt for the method that may keep it. ``on_layer`` takes
    each layer as soon as it is complete: the prompt then goes through the model in one, and
    ``chunk_tokens`` only limits feed-forward modules. So does that of a model marked
    ``whole_prompt`` (its recurrent state is wrong after a second chunk), and one whose ``sparse``
    attention needs all queries. NotFinite for NaN in the logits; hf.MethodBypassed if a layer
    computes its attention by itself.
    """
    ids_BS, pads = pad_left(prompts, model.device)
    split = split_tail(ids_BS.shape[1], tail_tokens)
    cache, managed = make_cache(model)
    pieces: AbstractContextManager[None] = nullcontext()
    if sparse is not None:
        chunk_tokens = _whole_blocks(sparse, prompts, chunk_tokens, split)
    if on_layer is not None:
        pieces = feed_forward_pieces(model, chunk_tokens)
    if on_layer is not None or getattr(model, "whole_prompt", False):
        chunk_tokens = split
    replays = getattr(model, "replays", False)
    owner = PromptRecorder(ids_BS, pads, managed, needs or Needs(), room, replays, sparse, on_layer)
    rotary = owner.rotary if owner.needs.prompt_rotary else None
    hooks = []
    if owner.needs.prompt_inputs or rotary is not None:
        hooks = hf.hook_layer_inputs(model, owner.layer_input, rotary)
    start, output = clock(), None
    try:
        with pieces:
            for begin in range(0, split, chunk_tokens):
                chunk = ids_BS[:, begin : min(split, begin + chunk_tokens)]
                owner.reached.clear()
                output = hf.forward(model, chunk, cache, owner)
                owner.length = begin + chunk.shape[1]
                hf.check_reached(model, managed, owner.reached)
                if on_chunk is not None:
                    on_chunk(owner.length)
    finally:
        for hook in hooks:
            hook.remove()
    assert output is not None
    seconds = clock() - start
    if not hf.is_finite(output):
        raise NotFinite(f"NaN in the logits after {split} tokens")
    return PrefilledPrompt(
        ids_BS=ids_BS,
        pad_tokens=pads,
        num_tokens=split,
        layers={} if on_layer is not None else {i: owner.layer(i, split) for i in managed},
        cache=cache,
        logits_BV=output,
        rope_tokens=owner.rope_tokens,
        num_heads=owner.num_heads,
        seconds=seconds,
        attention=owner.attention,
        computed_frac=None if sparse is None or replays else sparse.computed_frac,
    )


def _whole_blocks(
    sparse: SparsePrefill, prompts: Sequence[Sequence[int]], chunk_tokens: int, split: int
) -> int:
    """Tokens of a chunk, so that every chunk begins with a block. ValueError where none does."""
    if len(prompts) > 1:
        raise ValueError(f"prefill={sparse.config.name} runs with engine.batch=1 only")
    if sparse.whole_prompt:
        return split
    if chunk_tokens < sparse.block_tokens:
        raise ValueError(
            f"engine.chunk_tokens={chunk_tokens} is shorter than a block of "
            f"prefill={sparse.config.name} ({sparse.block_tokens} tokens)"
        )
    return chunk_tokens - chunk_tokens % sparse.block_tokens


def split_tail(tokens: int, tail_tokens: int) -> int:
    """Prompt tokens to prefill; ValueError where the tail leaves none."""
    if tokens <= tail_tokens:
        raise ValueError(
            f"protocol.tail_tokens={tail_tokens} leaves nothing to prefill of a prompt of {tokens} "
            "tokens; use fewer"
        )
    return tokens - tail_tokens


def pad_left(prompts: Sequence[Sequence[int]], device: Any) -> tuple[Tensor, tuple[int, ...]]:
    """``ids_BS`` padded on the left with id 0, and the padding of each row."""
    longest = max(map(len, prompts))
    pads = tuple(longest - len(prompt) for prompt in prompts)
    rows = [[0] * pad + list(prompt) for pad, prompt in zip(pads, prompts, strict=True)]
    return torch.tensor(rows, device=device), pads
