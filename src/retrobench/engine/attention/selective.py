"""SelectiveMethod: the template of methods that attend a chosen part of the cache.

An *index* says WHICH tokens, a *store* says WHERE they live; both are made by overridable factory
methods, so that any index runs on any store. ``docs/add_a_method.md`` fills this template.
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from retrobench_kernels.wave_attention import wave_attention
from torch import Tensor

from retrobench.core.budget import Budget
from retrobench.core.method import AttentionArgs, Method, PromptLayer
from retrobench.core.shapes import Footprint, KVShape
from retrobench.engine.attention.exact import dense_decode
from retrobench.engine.attention.index import Index, StaticConfig, retrieved_tokens
from retrobench.engine.attention.parts import attend, merge_all
from retrobench.memory.placement import PlacementConfig
from retrobench.memory.pool import make_store, plan_store
from retrobench.memory.selection import Everything, Selection, Spans, SpanView, Tokens
from retrobench.memory.store import KVStore, ResidentStore


class SelectiveMethod(Method):
    """Each decode step attends what ``index.select`` chooses, read from ``store``."""

    Config: ClassVar[type] = StaticConfig

    def setup(self) -> None:
        """Make index and store."""
        self.index: Index = self.make_index()
        self.store: KVStore = self.make_store()

    def make_index(self) -> Index:
        """The index of this method; the only thing that a simple method must override."""
        raise NotImplementedError

    def make_store(self) -> KVStore:
        """The store of this method: what its options ask for, if they are ``PlacementConfig``."""
        if isinstance(self.config, PlacementConfig):
            return make_store(self.config, self.shape)
        return ResidentStore(self.shape)

    @classmethod
    def plan(cls, config: Any, shape: KVShape, budget: Budget | None = None) -> Footprint:
        """The store's bytes (indexes that hold memory add theirs), after checking the budget."""
        retrieved_tokens(config, shape, budget)
        if isinstance(config, PlacementConfig):
            return plan_store(config, shape)
        return ResidentStore.plan(shape)

    def build(self, layer: int, prompt: PromptLayer) -> None:
        """Fill the store, then the index."""
        self.store.load(layer, prompt)
        self.index.build(layer, self.store, prompt)

    def decode(
        self, layer: int, q_BHTD: Tensor, k_BGTD: Tensor, v_BGTD: Tensor, args: AttentionArgs
    ) -> Tensor:
        """Append, select, attend."""
        self.store.append(layer, k_BGTD, v_BGTD)
        with self.probe.span("select"):
            self.index.append(layer, k_BGTD)
            selection = self.index.select(layer, q_BHTD, self.store, args)
        return self.attend(layer, q_BHTD, selection, args)

    def attend(
        self, layer: int, q_BHTD: Tensor, selection: Selection, args: AttentionArgs
    ) -> Tensor:
        """``o_BHTD`` of a selection: in place where the store can, else gathered."""
        if isinstance(selection, Everything):
            return self._attend_everything(layer, q_BHTD, selection, args)
        if isinstance(selection, Spans):
            view = self.store.spans(layer, selection)
            if view is not None:
                return self._attend_spans(layer, q_BHTD, selection, view, args)
            selection = as_tokens(selection)
        assert isinstance(selection, Tokens)
        with self.probe.span("gather"):
            k_BGRD, v_BGRD = self.store.gather(layer, selection.token_BGR)
        return self.attend_tokens(layer, q_BHTD, k_BGRD, v_BGRD, selection, args)

    def attend_tokens(
        self,
        layer: int,
        q_BHTD: Tensor,
        k_BGRD: Tensor,
        v_BGRD: Tensor,
        selection: Tokens,
        args: AttentionArgs,
    ) -> Tensor:
        """Attention over gathered tokens, counted."""
        valid = selection.token_BGR >= 0
        with self.probe.span("attend"):
            out = self.gathered(q_BHTD, k_BGRD, v_BGRD, valid, selection, args)
        if self.probe.counting:
            self.count(layer, valid.sum(), valid.shape[0] * valid.shape[1], selection)
        if self.probe.detail:
            members = selection.members() if selection.members is not None else None
            self.probe.selected(layer, selection.token_BGR, selection.estimate, members)
        return out

    def gathered(
        self,
        q_BHTD: Tensor,
        k_BGRD: Tensor,
        v_BGRD: Tensor,
        valid_BGR: Tensor,
        selection: Tokens,
        args: AttentionArgs,
    ) -> Tensor:
        """Attention over gathered tokens and whatever else the selection carries."""
        return attend(
            q_BHTD, k_BGRD, v_BGRD, valid_BGR, args,
            selection.estimate, selection.log_weight_BGR, selection.partials,
        )  # fmt: skip

    def _attend_spans(
        self, layer: int, q_BHTD: Tensor, spans: Spans, view: SpanView, args: AttentionArgs
    ) -> Tensor:
        with self.probe.span("attend"):
            q_BHD, softcap = q_BHTD[:, :, 0].contiguous(), args.softcap or 0.0
            part = wave_attention(
                q_BHD, view.steady, view.pool, spans.chosen_BGN, args.scale,
                estimation=spans.estimation, cache=view.cache, softcap=softcap,
            )  # fmt: skip
            out_BHD = merge_all(part, spans.partials).to(q_BHTD.dtype)
        if self.probe.counting:
            tokens = spans.num_tokens + view.steady.count_B.sum() * self.shape.num_kv_heads
            self.count(layer, tokens, self.shape.batch * self.shape.num_kv_heads, spans)
        if self.probe.detail:
            self.probe.selected(layer, as_tokens(spans).token_BGR)
        return out_BHD[:, :, None]

    def _attend_everything(
        self, layer: int, q_BHTD: Tensor, selection: Everything, args: AttentionArgs
    ) -> Tensor:
        keys, values = (
            x.to(q_BHTD.device) for x in (self.store.keys(layer), self.store.values(layer))
        )
        exists, heads = self.store.exists(layer), self.shape.batch * self.shape.num_kv_heads
        with self.probe.span("attend"):
            if exists is None and not selection.partials:
                out = self.dense(q_BHTD, keys, values, args)
            else:
                exists = self.store.positions(layer) >= 0
                out = attend(q_BHTD, keys, values, exists, args, partials=selection.partials)
        if self.probe.counting:
            if exists is None:
                tokens = sum(keys.shape[2] - pad for pad in self.shape.pad_tokens)
                self.count(layer, tokens * self.shape.num_kv_heads, heads, selection)
            else:
                self.count(layer, exists.sum(), heads, selection)
        if self.probe.detail and exists is not None:
            self.probe.selected(layer, self.store.positions(layer))
        return out

    def dense(self, q_BHTD: Tensor, k_BGSD: Tensor, v_BGSD: Tensor, args: AttentionArgs) -> Tensor:
        """Exact attention over all tokens of a store that nothing was dropped from."""
        return dense_decode(q_BHTD, k_BGSD, v_BGSD, args, self.shape.pad_tokens)

    def count(
        self, layer: int, tokens: int | Tensor, heads: int, selection: Selection, **more: Any
    ) -> None:
        """Tell the probe what a step attended: ``tokens`` of all rows and ``heads`` together."""
        tokens = tokens + selection.partial_tokens
        self.probe.count(
            layer,
            attended=tokens / heads,
            estimated=selection.estimated_tokens,
            kv=tokens * self.store.bytes_per_token(),
            index=selection.index_bytes,
            **more,
        )

    def report_counts(self) -> None:
        """What moved between tiers."""
        self.store.report_counts(self.probe)

    def allocated(self) -> Footprint:
        """Bytes of index and store."""
        return self.store.footprint() + self.index.footprint()

    def close(self) -> None:
        """Free index and store."""
        self.store.close()
        self.index.close()
        self.index = Index(self.config, self.shape, self.budget)


def as_tokens(spans: Spans) -> Tokens:
    """Runs of positions as positions (where slots are positions)."""
    size = spans.size_BGC.gather(-1, spans.chosen_BGN.clamp_min(0).long())
    first = spans.first_BGC.gather(-1, spans.chosen_BGN.clamp_min(0).long())
    offset = torch.arange(int(spans.size_BGC.max()), device=size.device)
    absent = (spans.chosen_BGN < 0)[..., None] | (offset >= size[..., None])
    token = (first[..., None] + offset).masked_fill(absent, -1).flatten(2).long()
    return Tokens(
        token_BGR=token,
        estimate=spans.estimate,
        estimated_tokens=spans.estimated_tokens,
        members=spans.members,
        partials=spans.partials,
        partial_tokens=spans.partial_tokens,
        index_bytes=spans.index_bytes,
    )
