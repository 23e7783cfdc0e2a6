"""InfiniGen: the next layer's tokens, guessed from this layer's input and fetched ahead.

OSDI'24, arXiv 2406.19707. RoPE and GQA are ours (docs/methods.md): the released code is for
models with as many KV heads as query heads.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from retrobench_kernels.gap_scores.naive import head_gaps
from torch import Tensor

from retrobench.core.budget import Budget
from retrobench.core.method import AttentionArgs, Method, ModelView, Needs, Probe
from retrobench.core.shapes import DTYPE_BYTES, Footprint, KVShape
from retrobench.engine.attention.backends import kernels
from retrobench.engine.attention.math import attend, causal
from retrobench.memory.prefetch import Prefetcher
from retrobench_methods.infinigen import calibration
from retrobench_methods.infinigen.config import InfiniGenConfig, fetched_tokens
from retrobench_methods.infinigen.pool import KVPool
from retrobench_methods.infinigen.speculation import PartialKeys, choose_tokens

WARM_QUERIES = 64  # last prompt queries whose selections decide what a small pool keeps


class InfiniGen(Method):
    """Dense first layers; elsewhere the speculated tokens and the newest one."""

    name = "infinigen"
    memory_knob = "partial_frac"
    Config = InfiniGenConfig
    needs = Needs(layer_inputs=True, calibration=True)
    Calibrator = calibration.SkewCalibration

    def __init__(
        self,
        config: Any,
        shape: KVShape,
        probe: Probe | None = None,
        budget: Budget | None = None,
    ) -> None:
        super().__init__(config, shape, probe, budget)
        self.most = fetched_tokens(config, shape, budget)
        self.pool = KVPool(config, shape)
        self.partial = PartialKeys(config, shape)
        fetches = config.prefetch and config.placement == "cpu"
        self.prefetcher = Prefetcher(shape.device, fetches)
        self.args: dict[int, AttentionArgs] = {}
        self.warm: dict[int, Tensor] = {}
        self.model: ModelView | None = None
        self.skew: dict[str, Tensor] = {}
        self.fetched = self.calls = 0

    @classmethod
    def plan(cls, config: Any, shape: KVShape, budget: Budget | None = None) -> Footprint:
        """Pool and partial keys, after checking the budget."""
        fetched_tokens(config, shape, budget)
        return KVPool.plan(config, shape) + PartialKeys.plan(config, shape)

    @classmethod
    def calibration(cls, config: Any, weights_id: str) -> str:
        """Hash of the skewing file."""
        return calibration.content_hash(calibration.find(config, weights_id))

    def bind(self, model: ModelView) -> None:
        """Load the skewing of this model."""
        self.model = model
        self.skew = calibration.load(calibration.find(self.config, model.weights_id), self.shape)

    def prefill(
        self, layer: int, q_BHTD: Tensor, k_BGTD: Tensor, v_BGTD: Tensor, args: AttentionArgs
    ) -> Tensor:
        """Exact attention; channel sums for the speculation."""
        start = self.pool.lengths[self.pool.slot[layer]]
        self.pool.extend(layer, k_BGTD, v_BGTD)
        self.args[layer] = args
        if layer in self.partial.slot:
            position = torch.arange(start, start + q_BHTD.shape[2], device=q_BHTD.device)
            real_BT = (
                position >= torch.tensor(self.shape.pad_tokens, device=position.device)[:, None]
            )
            self.partial.observe(layer, q_BHTD, k_BGTD, self._skew(layer), real_BT)
        if self.pool.capacity < self.shape.prompt_tokens:
            seen = [self.warm[layer], q_BHTD] if layer in self.warm else [q_BHTD]
            self.warm[layer] = torch.cat(seen, 2)[:, :, -WARM_QUERIES:]
        keys, values = self.pool.whole(layer)
        return causal(q_BHTD, keys, values, args, self.shape.pad_tokens)

    def seal(self) -> None:
        """Choose channels, drop what the pool cannot hold, build partial keys."""
        warm = [self._warm_use(layer) for layer in self.shape.layers] if self.warm else []
        self.pool.seal(torch.stack(warm) if warm else None)
        self.warm.clear()
        for layer in self.partial.layers:
            i = self.shape.layers.index(layer)
            q_abs, k_abs = self.skew["q_abs_LGD"][i], self.skew["k_abs_LGD"][i]
            self.partial.choose(layer, self._skew(layer), q_abs, k_abs)
            keys, _ = self.pool.whole(layer)
            self.partial.write(layer, slice(0, keys.shape[2]), keys)
        self.skew = {}

    def _skew(self, layer: int) -> Tensor:
        return self.skew["skew_LGDD"][self.shape.layers.index(layer)]

    def _warm_use(self, layer: int) -> Tensor:
        """Use of each prompt token by the last prompt queries, ``BGS``, as the policy counts it."""
        keys, _ = self.pool.whole(layer)
        queries = self.warm[layer]
        exists_BGS = self.pool.exists(layer)
        use = torch.zeros(exists_BGS.shape, dtype=torch.int32, device=keys.device)
        first = keys.shape[2] - queries.shape[2]
        for t in range(queries.shape[2]):
            q_BGND = queries[:, :, t].float().unflatten(1, (keys.shape[1], -1))
            logit = q_BGND @ keys.float().mT * self.args[layer].scale
            seen = exists_BGS & (torch.arange(keys.shape[2], device=keys.device) <= first + t)
            score = head_gaps(logit, seen, per_head=self.config.scope == "query_head")
            slot = choose_tokens(score, self.config, self.most, self.budget is not None)
            slot = slot.unflatten(1, (keys.shape[1], -1)).flatten(2)
            hit = torch.zeros(*use.shape[:2], use.shape[2] + 1, dtype=torch.bool, device=use.device)
            hit = hit.scatter_(2, slot.masked_fill(slot < 0, use.shape[2]), True)[..., :-1]
            recent = self.config.pool_policy == "lru"
            use = torch.where(hit, first + t, use) if recent else use + hit
        return use.to(self.pool.place)

    def layer_input(self, layer: int, hidden_BTE: Tensor, phase: str) -> None:
        """Speculate the next layer from this layer's input and start its fetch."""
        following = layer + 1
        if phase != "decode" or following not in self.partial.slot:
            return
        assert self.model is not None
        with self.probe.span("speculate"):
            q_BHTD = self.model.queries(following, hidden_BTE)
        if q_BHTD is None:
            return
        with self.probe.span(self.prefetcher.submit_span):
            self.prefetcher.submit(following, lambda: self._fetch(following, q_BHTD))

    def _fetch(self, layer: int, q_BHTD: Tensor) -> tuple[Tensor, ...]:
        """(slots, keys, values) of the tokens that a query is expected to need."""
        with self.probe.span("fetch"):
            exists, scale = self.pool.exists(layer), self.args[layer].scale
            score = self.partial.scores(layer, q_BHTD, exists, scale)
            slot = choose_tokens(score, self.config, self.most, self.budget is not None)
            return slot, *self.pool.fetch(layer, slot)

    def decode(
        self, layer: int, q_BHTD: Tensor, k_BGTD: Tensor, v_BGTD: Tensor, args: AttentionArgs
    ) -> Tensor:
        """What was fetched for this layer, and the newest token."""
        with self.probe.span("fetch_wait"):
            ready = self.prefetcher.take(layer)
        if ready is None:
            return self._dense(layer, q_BHTD, k_BGTD, v_BGTD, args)
        slot_BGR, k_BGRD, v_BGRD = ready
        index_bytes = self._index_bytes(layer)
        token_BGR = self.pool.positions(layer, slot_BGR) if self.probe.detail else slot_BGR
        self.pool.touch(layer, slot_BGR)
        self._append(layer, k_BGTD, v_BGTD)
        repeat = slot_BGR.shape[1] // self.shape.num_kv_heads
        newest = [part.repeat_interleave(repeat, 1) for part in (k_BGTD, v_BGTD)]
        valid = torch.nn.functional.pad(slot_BGR >= 0, (0, 1), value=True)
        with self.probe.span("attend"):
            keys, values = torch.cat([k_BGRD, newest[0]], 2), torch.cat([v_BGRD, newest[1]], 2)
            if bool(valid.all()):
                out = kernels(q_BHTD, keys, values, args, ())
            else:
                out = attend(q_BHTD, keys, values, valid, args)
        if self.probe.detail:
            last = self.pool.lengths[self.pool.slot[layer]] - 1
            self.probe.selected(layer, torch.nn.functional.pad(token_BGR, (0, 1), value=last))
        self._report(layer, valid, index_bytes)
        return out

    def _append(self, layer: int, k_BGTD: Tensor, v_BGTD: Tensor) -> None:
        slot = self.pool.add(layer, k_BGTD, v_BGTD)
        if layer in self.partial.slot:
            self.partial.write(layer, slot, k_BGTD)

    def _dense(
        self, layer: int, q_BHTD: Tensor, k_BGTD: Tensor, v_BGTD: Tensor, args: AttentionArgs
    ) -> Tensor:
        """All tokens of the pool: first layers, and layers without a speculation."""
        self._append(layer, k_BGTD, v_BGTD)
        keys, values = self.pool.whole(layer)
        valid = self.pool.exists(layer)
        if self.probe.detail:
            slots = torch.arange(keys.shape[2], device=keys.device).expand(valid.shape)
            slots = slots.masked_fill(~valid, -1)
            self.probe.selected(layer, self.pool.positions(layer, slots))
        self._report(layer, valid, 0)
        if self.pool.evicts and any(self.shape.pad_tokens):  # padding may be in any slot
            return attend(q_BHTD, keys, values, valid, args)
        return kernels(q_BHTD, keys, values, args, self.shape.pad_tokens)

    def _index_bytes(self, layer: int) -> int:
        """Partial keys that the speculation read."""
        channels = self.partial.key_LBGPC.shape[-1]
        rows = self.pool.used[self.pool.slot[layer]] * self.shape.batch * self.shape.num_kv_heads
        return rows * channels * DTYPE_BYTES[self.shape.dtype]

    def _report(self, layer: int, valid_BGR: Tensor, index_bytes: int) -> None:
        """Tokens and bytes: KV read; when offloaded, all but the newest token came over the bus."""
        num_valid, heads = int(valid_BGR.sum()), valid_BGR.shape[0] * valid_BGR.shape[1]
        token_bytes = 2 * self.shape.head_dim * DTYPE_BYTES[self.shape.dtype]
        self.probe.live(layer, attended=num_valid / heads)
        self.probe.moved("kv", num_valid * token_bytes)
        self.probe.moved("index", index_bytes)
        if index_bytes and self.model is not None:
            self.probe.moved("weights", self.model.projection_bytes(layer))
        if self.config.placement == "cpu":
            newest = self.shape.batch * self.shape.num_kv_heads
            self.probe.moved("h2d", (num_valid - heads) * token_bytes)
            self.probe.moved("d2h", newest * token_bytes + (8 * num_valid if index_bytes else 0))
        if index_bytes:
            self.fetched += num_valid - heads
            self.calls += heads

    def allocated(self) -> Footprint:
        """Bytes of pool and partial keys."""
        return self.pool.footprint() + self.partial.footprint()

    def stats(self) -> Mapping[str, Any]:
        """Mean tokens fetched per head and call, and the pool's capacity."""
        fetched = self.fetched / self.calls if self.calls else 0.0
        return {"fetched_tokens": fetched, "pool_tokens": self.pool.capacity}

    def close(self) -> None:
        """End the prefetch and free everything."""
        self.prefetcher.close()
        self.pool.close()
        self.partial.close()
        self.skew, self.warm = {}, {}
