"""RetrievalAttention: the CPU searches and attends the keys that a query asks for (2409.10516)."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from retrobench.core.budget import Budget
from retrobench.core.method import ALL_QUERIES, AttentionArgs, Needs, PromptLayer
from retrobench.core.shapes import Footprint, KVShape
from retrobench.core.spec import option
from retrobench.engine.attention.index import Index, StaticZone, retrieved_tokens
from retrobench.engine.attention.key_search import SEARCHES, KeySearch, SearchConfig
from retrobench.engine.attention.parts import partial, softcapped
from retrobench.engine.attention.selective import SelectiveMethod
from retrobench.memory.placement import kv_bytes
from retrobench.memory.selection import Everything, Partial, Selection, Tokens
from retrobench.memory.store import KVStore, ResidentStore, take


@dataclass(frozen=True, kw_only=True)
class RetrievalAttentionConfig(SearchConfig):
    """The search's own options are in ``SearchConfig``."""

    top_k: int = option(
        100, "keys attended beside the static zone, per query head; a budget replaces it", low=1
    )
    insert: bool = option(
        False,
        "tokens that leave the last ones join the index; false: generated tokens stay attended",
    )


class HostIndex(Index):
    """The prompt in host memory, and for every layer and row a search structure over its keys."""

    def __init__(self, config: Any, shape: KVShape, budget: Budget | None) -> None:
        super().__init__(config, shape, budget)
        self.top_k = top_k(config, shape, budget)
        self.zone = StaticZone(shape.pad_tokens, config.sink_tokens, config.local_tokens)
        self.room = _host_tokens(config, shape)
        self.kv: dict[int, tuple[Tensor, Tensor]] = {}
        self.searches: dict[int, list[KeySearch]] = {}
        self.found_BHR = torch.empty(0)  # positions that the last search chose, -1 padded
        self.inserted_bytes = 0  # of the last step
        self.scanned, self.searched = 0, 0  # keys whose product was computed; keys there were

    def build(self, layer: int, store: KVStore, prompt: PromptLayer) -> None:
        """Copy the prompt to the host and index it; the device keeps the static zone."""
        length, device = prompt.k_BGSD.shape[2], prompt.k_BGSD.device
        keep = self.zone.tokens(length, device)[:, None]
        store.evict(layer, keep.expand(-1, self.shape.num_kv_heads, -1).contiguous())
        copies = []
        for part in (prompt.k_BGSD, prompt.v_BGSD):
            copy = torch.zeros(*part.shape[:2], self.room, part.shape[3], dtype=part.dtype)
            copy[:, :, :length] = part
            copies.append(copy)
        self.kv[layer] = copies[0], copies[1]
        self.searches[layer] = []
        for row, pad in enumerate(self.shape.pad_tokens):
            first, end = self._indexed(row, length)
            memory_GSD = copies[0][row, :, first : self._indexed(row, self.room)[1]]
            search = SEARCHES[self.config.index](self.config, memory_GSD, self.shape.num_heads)
            queries = None if prompt.q_BHWD is None else prompt.q_BHWD[row, :, pad:]
            search.build(prompt.k_BGSD[row, :, first:end], queries, self.config.sink_tokens)
            self.searches[layer].append(search)

    def _indexed(self, row: int, length: int) -> tuple[int, int]:
        """Positions of a row outside the static zone: the first one, and the end."""
        first = min(self.room, self.shape.pad_tokens[row] + self.config.sink_tokens)
        return first, max(first, length - self.config.local_tokens)

    def select(self, layer: int, q_BHTD: Tensor, store: KVStore, args: AttentionArgs) -> Selection:
        """Search and attend on the CPU; what the device holds joins in the template."""
        self.inserted_bytes = self._insert(layer, store) if self.config.insert else 0
        part, tokens, index_bytes = self._retrieve(layer, q_BHTD[:, :, 0].cpu(), args)
        carried: dict[str, Any] = {"partial_tokens": tokens, "index_bytes": index_bytes}
        if part is not None:
            carried["partials"] = (tuple(x.to(q_BHTD.device) for x in part),)
        if not self.config.insert:
            return Everything(**carried)
        token_B1R = self.zone.tokens(store.length(layer), q_BHTD.device)[:, None]
        return Tokens(token_BGR=token_B1R.expand(-1, self.shape.num_kv_heads, -1), **carried)

    def _insert(self, layer: int, store: KVStore) -> int:
        """The token that leaves the last ones joins the index; bytes copied from the device."""
        newest, prompt = store.length(layer) - 1, self.shape.prompt_tokens
        token, copied = newest - self.config.local_tokens, 0
        chosen = torch.full((self.shape.batch, self.shape.num_kv_heads, 1), token)
        for row, search in enumerate(self.searches[layer]):
            if token < self._indexed(row, 0)[0]:
                continue
            if token >= prompt:  # the prompt is there already
                gathered = store.gather(layer, chosen.to(self.shape.device))
                for copy, part in zip(self.kv[layer], gathered, strict=True):
                    copy[row, :, token] = part[row, :, 0]
                copied += self.shape.layer_token_bytes
            search.append()
        return copied

    def _retrieve(
        self, layer: int, q_BHD: Tensor, args: AttentionArgs
    ) -> tuple[Partial | None, int, int]:
        """The part ``(o_BHD, lse_BH)`` over the best keys, their number, and bytes of the search.

        No part where nothing is indexed.
        """
        index_bytes = 0
        shape = (self.shape.batch, self.shape.num_heads, self._widest(layer))
        self.found_BHR = torch.full(shape, -1)
        product_BHR = torch.full(shape, -torch.inf)
        for row, search in enumerate(self.searches[layer]):
            if not search.length:
                continue
            count = self.top_k[row]
            if count >= search.length:
                found = search.everything(q_BHD[row], count)
            else:
                effort = self.config.effort(search.length, count)
                found = search.search(q_BHD[row], count, effort)
            wide = found.token_HR.shape[-1]
            first, token_HR = self._indexed(row, 0)[0], found.token_HR.long()
            self.found_BHR[row, :, :wide] = (token_HR + first).masked_fill(token_HR < 0, -1)
            product_BHR[row, :, :wide] = found.product_HR
            index_bytes += search.index_bytes(found)
            self.scanned += int(found.scanned_H.sum())
            self.searched += self.shape.num_heads * search.length
        if not shape[-1]:
            return None, 0, 0
        values_BHRD = take(self.kv[layer][1], self.found_BHR)
        logit_BHR = softcapped(product_BHR * args.scale, args)
        logit_BHR = logit_BHR.masked_fill(self.found_BHR < 0, -torch.inf)
        out_BH1D, lse_BH1 = partial(logit_BHR[:, :, None], values_BHRD)
        tokens = int((self.found_BHR >= 0).sum())
        return (out_BH1D[:, :, 0], lse_BH1[:, :, 0]), tokens, index_bytes

    def _widest(self, layer: int) -> int:
        """The most keys that a row of this step attends here."""
        pairs = zip(self.searches[layer], self.top_k, strict=True)
        return max(min(search.length, count) for search, count in pairs)

    def footprint(self) -> Footprint:
        """The host's copy and the search structures."""
        copies = sum(part.nbytes for kv in self.kv.values() for part in kv)
        structures = (search for row in self.searches.values() for search in row)
        return Footprint(host=copies + sum(search.num_bytes() for search in structures))

    def close(self) -> None:
        """Free everything."""
        self.kv.clear()
        self.searches.clear()


class RetrievalAttention(SelectiveMethod):
    """Sinks and newest tokens on the device, the top keys of the rest searched on the CPU."""

    name = "retrieval_attention"
    index_class = HostIndex
    Config = RetrievalAttentionConfig
    index: HostIndex

    @classmethod
    def needs_of(cls, config: RetrievalAttentionConfig) -> Needs:
        """All of the prompt's queries, where they train a graph."""
        return Needs(prompt_queries=ALL_QUERIES if config.index == "roar" else 0)

    @classmethod
    def plan(cls, config: Any, shape: KVShape, budget: Budget | None = None) -> Footprint:
        """The static zone on the device; the prompt and its search structures on the host."""
        top_k(config, shape, budget)
        static = config.sink_tokens + config.local_tokens
        room, host = _host_tokens(config, shape), 0
        for pad in shape.pad_tokens:
            keys, most = (max(0, end - pad - static) for end in (shape.prompt_tokens, room))
            host += SEARCHES[config.index].plan(
                config, keys, most, shape.num_heads, shape.num_kv_heads, shape.head_dim
            )
        host = host * len(shape.layers) + kv_bytes(shape, room)
        kept = min(shape.prefilled_tokens, static)
        return ResidentStore.plan_evicted(shape, kept) + Footprint(host=host)

    def attend(
        self, layer: int, q_BHTD: Tensor, selection: Selection, args: AttentionArgs
    ) -> Tensor:
        """As the template; a probe that asks is also told what the CPU attends."""
        out = super().attend(layer, q_BHTD, selection, args)
        if self.probe.detail:
            if isinstance(selection, Tokens):
                token_BGR = selection.token_BGR
            else:
                token_BGR = self.store.positions(layer)
            per_group = self.shape.num_heads // self.shape.num_kv_heads
            static_BHR = token_BGR.repeat_interleave(per_group, 1)
            searched_BHR = self.index.found_BHR.to(static_BHR.device)
            self.probe.selected(layer, torch.cat([static_BHR, searched_BHR], -1))
        return out

    def count(
        self, layer: int, tokens: int | Tensor, heads: int, selection: Selection, **more: Any
    ) -> None:
        """Static tokens are shared by the heads of a group, searched ones are a head's own."""
        shape = self.shape
        queries = shape.batch * shape.num_heads
        self.probe.count(
            layer,
            attended=tokens / heads + selection.partial_tokens / queries,
            estimated=0.0,
            kv=(tokens + selection.partial_tokens) * self.store.bytes_per_token(),
            index=selection.index_bytes,
            d2h=queries * shape.head_dim * shape.value_bytes + self.index.inserted_bytes,
            h2d=queries * (shape.head_dim + 1) * 4,  # the part: output and log-sum-exp, float32
            **more,
        )

    def stats(self) -> Mapping[str, Any]:
        """Share of the indexed keys whose product a search has computed."""
        index = self.index
        return {"scanned_frac": index.scanned / index.searched} if index.searched else {}


def top_k(
    config: RetrievalAttentionConfig, shape: KVShape, budget: Budget | None
) -> tuple[int, ...]:
    """Keys that each query head attends beside the static zone, for each row of the batch.

    A budget covers both; one that covers the context takes every key, those to come too.
    """
    if budget is None:
        return (config.top_k,) * shape.batch
    pairs = zip(retrieved_tokens(config, shape, budget), shape.contexts, strict=True)
    return tuple(shape.max_tokens if count >= context else count for count, context in pairs)


def _host_tokens(config: RetrievalAttentionConfig, shape: KVShape) -> int:
    """Tokens that the host has memory for."""
    return shape.max_tokens if config.insert else shape.prompt_tokens
