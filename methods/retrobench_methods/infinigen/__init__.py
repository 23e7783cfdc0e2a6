"""InfiniGen: the next layer's tokens, predicted from this layer's input and fetched ahead.

OSDI'24, arXiv 2406.19707. RoPE and GQA are ours (docs/methods.md): the released code is for
models with as many KV heads as query heads.
"""

from collections.abc import Mapping
from typing import Any

import torch
from retrobench_kernels.logit_margin import head_margins
from torch import Tensor
from torch.nn.functional import pad as pad_last

from retrobench.core.budget import Budget
from retrobench.core.method import ALL_QUERIES, AttentionArgs, ModelView, Needs, PromptLayer
from retrobench.core.shapes import DTYPE_BYTES, Footprint, KVShape
from retrobench.engine.attention.backends import kernels
from retrobench.engine.attention.parts import logits
from retrobench.engine.attention.selective import SelectiveMethod
from retrobench.memory.prefetch import Prefetcher
from retrobench.memory.selection import Everything, Selection, Tokens, listed
from retrobench_methods.infinigen import calibration
from retrobench_methods.infinigen.config import InfiniGenConfig, fetched_tokens
from retrobench_methods.infinigen.pool import KVPool
from retrobench_methods.infinigen.speculation import PartialKeys, choose_mass, choose_tokens

WARM_QUERIES = 64  # last prompt queries whose selections decide what a small pool keeps


class InfiniGen(SelectiveMethod):
    """Dense first layers; elsewhere the speculated tokens and the newest one."""

    name = "infinigen"
    together = True
    index_class = PartialKeys
    memory_knob = "partial_frac"
    adaptive = True
    Config = InfiniGenConfig
    needs = Needs(layer_inputs=True, calibration=True, prompt_queries=ALL_QUERIES)
    Calibrator = calibration.SkewCalibration
    index: PartialKeys
    store: KVPool

    def setup(self) -> None:
        """Make partial keys and pool."""
        super().setup()
        config, shape, budget = self.config, self.shape, self.budget
        self.max_fetched = fetched_tokens(config, shape, budget)
        fetches = config.prefetch and config.placement == "cpu"
        self.prefetcher = Prefetcher(shape.device, fetches)
        self.args: dict[int, AttentionArgs] = {}
        self.model: ModelView | None = None
        self.skew: dict[str, Tensor] = {}
        self.fetched: float | Tensor = 0.0
        self.calls = 0

    def make_store(self) -> KVPool:
        """The pool."""
        return KVPool(self.config, self.shape)

    @classmethod
    def plan(cls, config: Any, shape: KVShape, budget: Budget | None = None) -> Footprint:
        """Pool and partial keys, after checking the budget."""
        fetched_tokens(config, shape, budget)
        return KVPool.plan(config, shape) + PartialKeys.plan(config, shape, budget)

    def bind(self, model: ModelView) -> None:
        """Load the skewing of this model."""
        self.model = model
        file = calibration.SkewCalibration.find(self.config, model.weights_id)
        self.skew = calibration.load(file, self.shape)

    def build(self, layer: int, prompt: PromptLayer) -> None:
        """Choose channels, keep what the pool can hold, build partial keys of it."""
        self.args[layer] = prompt.args
        if self.store.evicts:
            fits = self.store.capacity >= self.shape.prompt_tokens
            use = torch.zeros_like(prompt.k_BGSD[..., 0]) if fits else self._warm_use(prompt)
            self.store.load_used(layer, prompt, use)
        else:
            self.store.load(layer, prompt)
        if layer in self.index.slot:
            i = self.shape.layers.index(layer)
            skew = {name: part[i] for name, part in self.skew.items()}
            self.index.choose_channels(layer, prompt, skew)
            keys = self.store.keys(layer).to(self.shape.device)
            self.index.write(layer, slice(0, keys.shape[2]), keys)

    def finish_build(self) -> None:
        """The skewing is in the partial keys now."""
        super().finish_build()
        self.skew = {}

    def _warm_use(self, prompt: PromptLayer) -> Tensor:
        """Use of each prompt token by the last prompt queries, ``BGS``, as the policy counts it."""
        keys, queries = prompt.k_BGSD.float(), prompt.q_BHWD
        assert queries is not None
        queries = queries[:, :, -WARM_QUERIES:]
        position = torch.arange(keys.shape[2], device=keys.device)
        pad_B11 = torch.tensor(self.shape.pad_tokens, device=keys.device)[:, None, None]
        recent = self.config.pool_policy == "lru"
        use = torch.zeros(keys.shape[:3], dtype=torch.int32, device=keys.device)
        first = keys.shape[2] - queries.shape[2]
        for t in range(queries.shape[2]):
            q_BGND = queries[:, :, t].unflatten(1, (keys.shape[1], -1))
            logit = logits(q_BGND, keys, prompt.args)
            seen = ((position >= pad_B11) & (position <= first + t)).expand(use.shape)
            score = head_margins(logit, seen, per_head=self.config.scope == "query_head")
            slot = choose_tokens(score, self.config, self.max_fetched, self.budget is not None)
            hit = listed(slot.unflatten(1, (keys.shape[1], -1)).flatten(2), use.shape[2])
            use = torch.where(hit, first + t, use) if recent else use + hit
        return use

    def layer_input(self, layer: int, hidden_BTM: Tensor) -> None:
        """Speculate the next layer from this layer's input and start its fetch."""
        following = layer + 1
        if following not in self.index.slot:
            return
        assert self.model is not None
        with self.probe.span("speculate"):
            q_BHTD = self.model.queries(following, hidden_BTM)
        if q_BHTD is None:
            return
        with self.probe.span(self.prefetcher.submit_span):
            self.prefetcher.submit(following, lambda: self._fetch(following, q_BHTD))

    def _fetch(self, layer: int, q_BHTD: Tensor) -> tuple[Tensor, ...]:
        """(slots, keys, values) of the tokens that a query is expected to need."""
        with self.probe.span("fetch"):
            asked = layer, q_BHTD, self.store.real_slots(layer), self.args[layer]
            top_p = None if self.budget is None else self.budget.top_p
            if top_p is not None:
                score, mass = self.index.scores_and_mass(*asked)
                slot = choose_mass(score, mass, top_p, self.max_fetched)
            else:
                score = self.index.scores(*asked, per_head=self.config.scope == "query_head")
                slot = choose_tokens(score, self.config, self.max_fetched, self.budget is not None)
            return slot, *self.store.fetch(layer, slot)

    def decode(
        self, layer: int, q_BHTD: Tensor, k_BGTD: Tensor, v_BGTD: Tensor, args: AttentionArgs
    ) -> Tensor:
        """What was fetched for this layer, and the newest token; all tokens in a dense layer."""
        with self.probe.span("fetch_wait"):
            ready = self.prefetcher.take(layer)
        if ready is None:
            self._append(layer, k_BGTD, v_BGTD)
            return self.attend(layer, q_BHTD, Everything(), args)
        slot_BGR, k_BGRD, v_BGRD = ready
        index_bytes = self._index_bytes(layer) if self.probe.counting else 0
        token_BGR = self.store.positions_of(layer, slot_BGR) if self.probe.detail else slot_BGR
        self.store.touch(layer, slot_BGR)
        self._append(layer, k_BGTD, v_BGTD)
        repeat = slot_BGR.shape[1] // self.shape.num_kv_heads
        newest = [part.repeat_interleave(repeat, 1) for part in (k_BGTD, v_BGTD)]
        k_BGRD, v_BGRD = torch.cat([k_BGRD, newest[0]], 2), torch.cat([v_BGRD, newest[1]], 2)
        token_BGR = pad_last(token_BGR, (0, 1), value=self.store.length(layer) - 1)
        chosen = Tokens(token_BGR=token_BGR, index_bytes=index_bytes)
        return self.attend_tokens(layer, q_BHTD, k_BGRD, v_BGRD, chosen, args)

    def gathered(
        self, q_BHTD: Tensor, k_BGRD: Tensor, v_BGRD: Tensor, selection: Tokens, args: AttentionArgs
    ) -> Tensor:
        """By this project's kernel where every head fetched as many tokens."""
        if bool((selection.token_BGR >= 0).all()):
            return kernels(q_BHTD, k_BGRD, v_BGRD, args, ())
        return super().gathered(q_BHTD, k_BGRD, v_BGRD, selection, args)

    def dense(self, q_BHTD: Tensor, k_BGSD: Tensor, v_BGSD: Tensor, args: AttentionArgs) -> Tensor:
        """All tokens by this project's kernel."""
        return kernels(q_BHTD, k_BGSD, v_BGSD, args, self.shape.pad_tokens)

    def _append(self, layer: int, k_BGTD: Tensor, v_BGTD: Tensor) -> None:
        slot = self.store.add(layer, k_BGTD, v_BGTD)
        if layer in self.index.slot:
            self.index.write(layer, slot, k_BGTD)

    def _index_bytes(self, layer: int) -> int:
        """Partial keys that the speculation read."""
        channels = self.index.key_LBGPC.shape[-1]
        return int(self.store.real_slots(layer).sum()) * channels * DTYPE_BYTES[self.shape.dtype]

    def count(
        self, layer: int, tokens: int | Tensor, heads: int, selection: Selection, **more: Any
    ) -> None:
        """When offloaded, all but the newest token came over the bus, and slots went up."""
        speculated = bool(selection.index_bytes)
        if speculated and self.model is not None:
            more["weights"] = self.model.projection_bytes(layer)
        if self.config.placement == "cpu":
            token_bytes = self.store.bytes_per_token()
            newest = self.shape.batch * self.shape.num_kv_heads
            more["h2d"] = (tokens - heads) * token_bytes
            more["d2h"] = newest * token_bytes + (8 * (tokens - heads) if speculated else 0)
        if speculated:
            self.fetched = self.fetched + (tokens - heads)
            self.calls += heads
        super().count(layer, tokens, heads, selection, **more)

    def stats(self) -> Mapping[str, Any]:
        """Mean tokens fetched per head and call, and the pool's capacity."""
        fetched = float(self.fetched) / self.calls if self.calls else 0.0
        return {"fetched_tokens": fetched, "pool_tokens": self.store.capacity}

    def close(self) -> None:
        """End the prefetch and free everything."""
        self.prefetcher.close()
        super().close()
        self.skew = {}
