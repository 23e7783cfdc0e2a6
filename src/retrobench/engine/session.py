"""Session: one batch of prompts through one model with one method.

``prefill`` (chunked) -> ``seal`` -> ``decode`` loop. It owns phases, lengths and clock points.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from retrobench.core.budget import Budget
from retrobench.core.method import AttentionArgs, Method, Probe
from retrobench.core.shapes import Footprint, KVShape
from retrobench.engine import hf
from retrobench.engine.queries import ModelQueries
from retrobench.engine.replay import TraceModel


class NotLive(RuntimeError):
    """A served layer was not reached in a step: the model silently bypassed the method."""


class NotFinite(RuntimeError):
    """The logits held NaN."""


Stop = Callable[[list[int]], bool]  # whether the tokens of an answer end it


@dataclass(frozen=True, slots=True, kw_only=True)
class Decoding:
    """How tokens are chosen. ``temperature`` 0 is greedy."""

    max_new_tokens: int
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int = 0


@dataclass(slots=True, kw_only=True)
class Generation:
    """What a session produced, row by row, and what it took (seconds, bytes)."""

    token_ids: list[list[int]] = field(default_factory=list)
    stop_reasons: list[str] = field(default_factory=list)
    prefill_s: float | None = 0.0  # None: a later turn of a conversation
    seal_s: float | None = 0.0
    decode_s: float = 0.0
    decode_steps: int = 0
    footprint: Footprint = field(default_factory=Footprint)
    method_stats: dict[str, Any] = field(default_factory=dict)

    def pending(self) -> list[int]:
        """Tokens of the answer (batch 1) that the model has not seen yet: the last, unless eos."""
        return [] if self.stop_reasons[0] == "eos" else self.token_ids[0][-1:]


class Session:
    """Runs one batch. Use once; ``close`` frees the method's memory and detaches hooks."""

    def __init__(
        self,
        model: PreTrainedModel,
        method_class: Callable[..., Method],
        config: Any,
        prompts: Sequence[Sequence[int]],
        *,
        probe: Probe,
        clock: Callable[[], float],
        max_new_tokens: int,
        budget: Budget | None = None,
        chunk_tokens: int = 4096,
        on_prefill: Callable[[int], None] | None = None,
    ) -> None:
        self.model, self.clock = model, clock
        self.chunk_tokens = chunk_tokens
        self.on_prefill = on_prefill
        longest = max(map(len, prompts))
        pads = tuple(longest - len(prompt) for prompt in prompts)
        rows = [[0] * pad + list(prompt) for pad, prompt in zip(pads, prompts, strict=True)]
        self.ids_BS = torch.tensor(rows, device=model.device)
        self.pad_B1 = torch.tensor(pads, device=model.device)[:, None]
        self.cache, self.layers = hf.make_cache(model)
        self.shape = kv_shape(model, pads, longest, max_new_tokens)
        self.method = method_class(config, self.shape, probe, budget)
        self.phase = "prefill"
        self.length = 0
        self._reached: set[int] = set()
        self._hooks: list[Any] = []
        if self.method.needs.layer_inputs:
            if isinstance(model, TraceModel):
                self.method.bind(model.view)  # it calls layer_input itself
            else:
                self._hook_layers()

    def attend(
        self, layer: int, q_BHTD: Tensor, k_BGTD: Tensor, v_BGTD: Tensor, args: AttentionArgs
    ) -> Tensor:
        """Called by the attention function for a served layer."""
        self._reached.add(layer)
        if self.phase == "prefill":
            return self.method.prefill(layer, q_BHTD, k_BGTD, v_BGTD, args)
        return self.method.decode(layer, q_BHTD, k_BGTD, v_BGTD, args)

    @torch.inference_mode()
    def generate(
        self,
        decoding: Decoding,
        stop_ids: frozenset[int],
        tail_tokens: int = 0,
        stop: Stop | None = None,
    ) -> Generation:
        """Prefill all but the last ``tail_tokens`` prompt tokens, seal, decode the rest and on.

        Tail tokens go through the method's decode path one by one (protocols ``query_agnostic``
        and ``decode_tail``).
        """
        split = self.ids_BS.shape[1] - tail_tokens
        if split < 1:
            raise ValueError(f"protocol tail of {tail_tokens} tokens leaves no prompt to prefill")
        start = self.clock()
        logits = self.prefill(split)
        prefill_s = self.clock() - start
        self.seal()
        seal_s = self.clock() - start - prefill_s
        result = self._answer(self.ids_BS[:, split:], logits, decoding, stop_ids, stop)
        result.prefill_s, result.seal_s = prefill_s, seal_s
        return result

    @torch.inference_mode()
    def go_on(
        self,
        ids: Sequence[int],
        decoding: Decoding,
        stop_ids: frozenset[int],
        stop: Stop | None = None,
    ) -> Generation:
        """Decode more given tokens after an answer, then the next answer (batch 1)."""
        ids_1T = torch.tensor([list(ids)], device=self.ids_BS.device)
        result = self._answer(ids_1T, None, decoding, stop_ids, stop)
        result.prefill_s = result.seal_s = None
        return result

    def _answer(
        self,
        given_BT: Tensor,
        logits: Tensor | None,
        decoding: Decoding,
        stop_ids: frozenset[int],
        stop: Stop | None = None,
    ) -> Generation:
        result = Generation(footprint=self.method.allocated())
        start = self.clock()
        for position in range(given_BT.shape[1]):
            logits = self.step(given_BT[:, position : position + 1])
            result.decode_steps += 1
        assert logits is not None
        self._loop(logits, decoding, stop_ids, result, stop)
        result.decode_s = self.clock() - start
        result.method_stats = dict(self.method.stats())
        return result

    def prefill(self, num_tokens: int) -> Tensor:
        """The first prompt tokens in chunks; logits ``BV`` of the last one."""
        logits = None
        for start in range(0, num_tokens, self.chunk_tokens):
            end = min(num_tokens, start + self.chunk_tokens)
            logits = self._forward(self.ids_BS[:, start:end])
            if self.on_prefill is not None:
                self.on_prefill(end)
        assert logits is not None
        return logits

    def seal(self) -> None:
        """Build the index; decode steps follow."""
        self.method.seal()
        self.phase = "decode"

    def step(self, token_B1: Tensor) -> Tensor:
        """One decode step; logits ``BV``."""
        logits = self._forward(token_B1)
        self.method.step()
        return logits

    def close(self) -> None:
        """Free the method's state and remove hooks."""
        for hook in self._hooks:
            hook.remove()
        self.method.close()

    def _forward(self, ids_BT: Tensor) -> Tensor:
        num_new = ids_BT.shape[1]
        end = self.length + num_new
        position = torch.arange(self.length, end, device=ids_BT.device)[None] - self.pad_B1
        mask = None
        if any(self.shape.pad_tokens):
            mask = (torch.arange(end, device=ids_BT.device)[None] >= self.pad_B1).long()
        self._reached.clear()
        output = self.model(
            input_ids=ids_BT,
            attention_mask=mask,
            position_ids=position.clamp_min(0),
            past_key_values=self.cache,
            use_cache=True,
            logits_to_keep=1,
            session=self,
        )
        self.length = end
        missing = set(self.layers) - self._reached
        if missing:
            raise NotLive(
                f"layers {sorted(missing)} of {type(self.model).__name__} did not reach the "
                "method: the model computes their attention by itself"
            )
        logits = output.logits[:, -1].float()
        if not hf.is_finite(logits):
            raise NotFinite(f"NaN in the logits after {end} tokens")
        return logits

    def _loop(
        self,
        logits: Tensor,
        decoding: Decoding,
        stop_ids: frozenset[int],
        result: Generation,
        stop: Stop | None,
    ) -> None:
        batch = logits.shape[0]
        result.token_ids = [[] for _ in range(batch)]
        result.stop_reasons = ["length"] * batch
        active = set(range(batch))
        generator = torch.Generator(logits.device).manual_seed(decoding.seed)
        for index in range(decoding.max_new_tokens):
            token_B1 = choose(logits, decoding, generator)
            for row in sorted(active):
                token = int(token_B1[row])
                if token in stop_ids:
                    active.discard(row)
                    result.stop_reasons[row] = "eos"
                else:
                    result.token_ids[row].append(token)
                    if stop is not None and stop(result.token_ids[row]):
                        active.discard(row)
                        result.stop_reasons[row] = "stop_string"
            if not active or index + 1 == decoding.max_new_tokens:
                return
            logits = self.step(token_B1)
            result.decode_steps += 1

    def _hook_layers(self) -> None:
        """Give the method the input of each layer's attention."""
        view = ModelQueries(self.model, self.layers)
        self.method.bind(view)

        def hook(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            if view.computing:
                return
            hidden = args[0] if args else kwargs["hidden_states"]
            view.observe(int(module.layer_idx), kwargs)
            self.method.layer_input(int(module.layer_idx), hidden, self.phase)

        for module in view.attention.values():
            self._hooks.append(module.register_forward_pre_hook(hook, with_kwargs=True))


def kv_shape(
    model: PreTrainedModel, pad_tokens: tuple[int, ...], prompt_tokens: int, new_tokens: int
) -> KVShape:
    """The KV cache that a session of this size needs."""
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


def choose(logits_BV: Tensor, decoding: Decoding, generator: torch.Generator) -> Tensor:
    """Next token ``B1``: greedy, or temperature and nucleus sampling."""
    if decoding.temperature == 0:
        return logits_BV.argmax(-1, keepdim=True)
    probability, token = (logits_BV / decoding.temperature).softmax(-1).sort(-1, descending=True)
    beyond = probability.cumsum(-1) - probability >= decoding.top_p
    probability = probability.masked_fill(beyond, 0)
    pick = torch.multinomial(probability, 1, generator=generator)
    return token.gather(-1, pick)
