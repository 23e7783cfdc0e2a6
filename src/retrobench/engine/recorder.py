"""The attention owner of a prefill: exact or sparse attention, and what ``Needs`` asks for."""

import dataclasses
from collections.abc import Callable

import torch
from torch import Tensor

from retrobench.core.method import ALL_INPUTS, ALL_QUERIES, AttentionArgs, Needs, PromptLayer
from retrobench.engine.attention.causal import causal, causal_form
from retrobench.engine.attention.exact import attention_mass
from retrobench.engine.pre_rope import RotaryFactors
from retrobench.engine.sparse_prefill import SparsePrefill

LayerTaker = Callable[[int, PromptLayer], None]


class PromptRecorder:
    """The attention owner of a prefill: exact attention, and the parts that ``Needs`` asks for."""

    def __init__(
        self,
        ids_BS: Tensor,
        pad_tokens: tuple[int, ...],
        layers: tuple[int, ...],
        needs: Needs,
        room: int,
        replays: bool,
        sparse: SparsePrefill | None,
        on_layer: LayerTaker | None,
    ) -> None:
        self.ids_BS, self.pad_tokens, self.needs = ids_BS, pad_tokens, needs
        self.layers, self.replays, self.sparse = layers, replays, sparse
        self.on_layer = on_layer
        self.memory_tokens = ids_BS.shape[1] + room
        self.rope_tokens = tuple(self.memory_tokens - pad for pad in pad_tokens)
        self.length = self.num_heads = 0
        self.reached: set[int] = set()
        self.memory: dict[int, tuple[Tensor, Tensor]] = {}
        self.queries: dict[int, list[Tensor]] = {}
        self.inputs: dict[int, list[Tensor]] = {}
        self.rotary = RotaryFactors()
        self.args: dict[int, AttentionArgs] = {}
        self.attention: set[str] = set()  # forms that ran

    def attend(
        self, layer: int, q_BHTD: Tensor, k_BGTD: Tensor, v_BGTD: Tensor, args: AttentionArgs
    ) -> Tensor:
        """Attention of a chunk over the prompt so far."""
        self.reached.add(layer)
        self.args[layer], self.num_heads = args, q_BHTD.shape[1]
        end = self.length + k_BGTD.shape[2]
        if self.on_layer is not None:
            return self._hand_over(layer, q_BHTD, k_BGTD, v_BGTD)
        if layer not in self.memory:
            self.memory[layer] = self._room(k_BGTD), self._room(v_BGTD)
        keys, values = self.memory[layer]
        keys[:, :, self.length : end] = k_BGTD
        values[:, :, self.length : end] = v_BGTD
        self._keep_queries(layer, q_BHTD)
        if self.replays:  # a recorded trace goes on by itself
            return q_BHTD
        return self._computed(q_BHTD, keys[:, :, :end], values[:, :, :end], args)

    def _computed(
        self, q_BHTD: Tensor, k_BGSD: Tensor, v_BGSD: Tensor, args: AttentionArgs
    ) -> Tensor:
        """Sparse or exact attention of the last T of S tokens; its form is remembered."""
        if self.sparse is not None:
            self.attention.add(self.sparse.config.name)
            return self.sparse.attend(q_BHTD, k_BGSD, v_BGSD, args)
        self.attention.add(causal_form(q_BHTD, k_BGSD, v_BGSD, args))
        return causal(q_BHTD, k_BGSD, v_BGSD, args, self.pad_tokens)

    def _hand_over(self, layer: int, q_BHTD: Tensor, k_BGTD: Tensor, v_BGTD: Tensor) -> Tensor:
        """Attention of the whole prompt; the layer is complete, and somebody takes it at once."""
        assert self.on_layer is not None
        out = self._computed(q_BHTD, k_BGTD, v_BGTD, self.args[layer])
        self._keep_queries(layer, q_BHTD)
        self.memory[layer] = k_BGTD, v_BGTD
        part = self.layer(layer, k_BGTD.shape[2])
        self.on_layer(layer, dataclasses.replace(part, memory=None))
        return out

    def layer_input(self, layer: int, hidden_BTM: Tensor) -> None:
        """Keep a chunk of a layer's input, if somebody needs it."""
        kept = self.needs.prompt_inputs if layer in self.layers else 0
        if kept == ALL_INPUTS:
            self.inputs.setdefault(layer, []).append(hidden_BTM)
        elif kept:
            recent = torch.cat([*self.inputs.get(layer, ()), hidden_BTM], 1)
            self.inputs[layer] = [recent[:, -kept:].clone()]

    def _room(self, part: Tensor) -> Tensor:
        batch, groups, _, dim = part.shape
        return part.new_empty(batch, groups, self.memory_tokens, dim)

    def _keep_queries(self, layer: int, q_BHTD: Tensor) -> None:
        kept = max(self.needs.prompt_queries, self.needs.prompt_mass)
        if self.needs.prompt_queries == ALL_QUERIES:
            self.queries.setdefault(layer, []).append(q_BHTD)
        elif kept:
            recent = torch.cat([*self.queries.get(layer, ()), q_BHTD], 2)
            self.queries[layer] = [recent[:, :, -kept:].clone()]

    def layer(self, layer: int, end: int) -> PromptLayer:
        """What was kept of a layer."""
        keys, values = self.memory.pop(layer)
        queries = torch.cat(self.queries.pop(layer), 2) if layer in self.queries else None
        inputs = torch.cat(self.inputs.pop(layer), 1) if layer in self.inputs else None
        cos, sin = self.rotary.of(layer) if self.needs.prompt_rotary else (None, None)
        mass, window = None, self.needs.prompt_mass
        if window:
            assert queries is not None
            mass = attention_mass(
                queries[:, :, -window:], keys[:, :, :end], self.args[layer], self.pad_tokens
            )
        if not self.needs.prompt_queries:
            queries = None
        return PromptLayer(
            k_BGSD=keys[:, :, :end],
            v_BGSD=values[:, :, :end],
            args=self.args[layer],
            q_BHWD=queries,
            mass_BHS=mass,
            input_BWM=inputs,
            cos_BSD=cos,
            sin_BSD=sin,
            memory=(keys, values),
        )
