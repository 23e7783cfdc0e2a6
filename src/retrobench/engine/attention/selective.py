"""SelectiveMethod: the template of methods that attend a chosen part of the cache.

An *index* says WHICH tokens, a *store* says WHERE they live; both are made by overridable factory
methods, so that any index runs on any store. ``docs/add_a_method.md`` fills this template.
"""

from dataclasses import replace
from typing import Any, ClassVar

from retrobench_kernels.wave_attention import wave_attention
from torch import Tensor

from retrobench.core.budget import Budget
from retrobench.core.method import AttentionArgs, Method, PromptLayer
from retrobench.core.shapes import Footprint, KVShape
from retrobench.engine.attention.backends import fastest
from retrobench.engine.attention.index import Index, StaticConfig
from retrobench.engine.attention.parts import attend, merge_all
from retrobench.memory.placement import PlacementConfig
from retrobench.memory.pool import make_store, plan_store
from retrobench.memory.selection import (
    Everything,
    Selection,
    Spans,
    SpanView,
    Tokens,
)
from retrobench.memory.store import KVStore, ResidentStore


class SelectiveMethod(Method):
    """Each decode step attends what ``index.select`` chooses, read from ``store``."""

    Config: ClassVar[type] = StaticConfig
    index_class: ClassVar[type[Index]] = Index  # all that a simple method must set

    def setup(self) -> None:
        self.index: Index = self.make_index()
        self.store: KVStore = self.make_store()

    def make_index(self) -> Index:
        """The index of this method."""
        return self.index_class(self.config, self.shape, self.budget)

    def make_store(self) -> KVStore:
        """The store of this method: what its options ask for, if they are ``PlacementConfig``."""
        if isinstance(self.config, PlacementConfig):
            return make_store(self.config, self.shape)
        return ResidentStore(self.shape)

    @classmethod
    def plan(cls, config: Any, shape: KVShape, budget: Budget | None = None) -> Footprint:
        """Bytes of store and index, which check options and budget."""
        index = cls.index_class.plan(config, shape, budget)
        if isinstance(config, PlacementConfig):
            return plan_store(config, shape) + index
        return ResidentStore.plan(shape) + index

    def build(self, layer: int, prompt: PromptLayer) -> None:
        """Fill the store, then the index."""
        self.store.load(layer, prompt)
        self.index.build(layer, self.store, prompt)

    def finish_build(self) -> None:
        """Wait for the copies of the prompt."""
        self.store.offload.finish()

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
            packed = self.store.packed(layer)
            if packed is None:
                return self._attend_everything(layer, q_BHTD, selection, args)
            spans = replace(packed[0], **selection.carried())
            return self._attend_spans(layer, q_BHTD, spans, packed[1], args)
        if isinstance(selection, Tokens):
            selection = self.store.runs(layer, selection) or selection
        if isinstance(selection, Spans):
            view = self.store.spans(layer, selection)
            if view is not None:
                return self._attend_spans(layer, q_BHTD, selection, view, args)
            selection = selection.tokens()
        assert isinstance(selection, Tokens)
        with self.probe.span("gather"):
            k_BGRD, v_BGRD = self.store.gather(layer, selection.token_BGR)
        return self.attend_tokens(layer, q_BHTD, k_BGRD, v_BGRD, selection, args)

    def _attend_spans(
        self, layer: int, q_BHTD: Tensor, spans: Spans, view: SpanView, args: AttentionArgs
    ) -> Tensor:
        """Attention over spans in place, counted."""
        out_BHD = self.attend_in_place(layer, q_BHTD[:, :, 0], spans, view, args)
        if self.probe.counting:
            always = view.steady.count_B.sum() * self.shape.num_kv_heads
            heads = self.shape.batch * self.shape.num_kv_heads
            self.count(layer, spans.num_tokens + always, heads, spans)
        if self.probe.detail:
            self.report_spans(layer, spans, view)
        return out_BHD[:, :, None]

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
            out = self.gathered(q_BHTD, k_BGRD, v_BGRD, selection, args)
        if self.probe.counting:
            self.count(layer, valid.sum(), valid.shape[0] * valid.shape[1], selection)
        if self.probe.detail:
            members = selection.members() if selection.members is not None else None
            self.probe.selected(layer, selection.token_BGR, selection.estimate, members)
        return out

    def gathered(
        self, q_BHTD: Tensor, k_BGRD: Tensor, v_BGRD: Tensor, selection: Tokens, args: AttentionArgs
    ) -> Tensor:
        """Attention over gathered tokens and whatever else the selection carries."""
        return attend(
            q_BHTD, k_BGRD, v_BGRD, selection.token_BGR >= 0, args,
            selection.estimate, selection.log_weight_BGR, selection.partials,
        )  # fmt: skip

    def attend_in_place(
        self, layer: int, q_BHD: Tensor, spans: Spans, view: SpanView, args: AttentionArgs
    ) -> Tensor:
        """``o_BHD`` over spans where they are, and over what is always attended."""
        with self.probe.span("attend"):
            part = wave_attention(
                q_BHD.contiguous(), view.steady, view.pool, spans.chosen_BGN, args.scale,
                estimation=spans.estimation, cache=view.cache, softcap=args.softcap or 0.0,
            )  # fmt: skip
            return merge_all(part, spans.partials).to(q_BHD.dtype)

    def report_spans(self, layer: int, spans: Spans, view: SpanView) -> None:
        """Tell a probe that asks which positions are attended."""
        self.probe.selected(layer, self.store.slot_positions(layer, spans.token_BGR))

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
        return fastest.run(q_BHTD, k_BGSD, v_BGSD, args, self.shape.pad_tokens)

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
        return self.store.footprint() + self.index.footprint()

    def close(self) -> None:
        self.store.close()
        self.index.close()
