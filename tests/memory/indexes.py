"""Indexes of every kind of selection, and a method that runs any of them on any store."""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import torch

from retrobench.core.method import AttentionArgs, Needs
from retrobench.core.spec import option
from retrobench.engine.attention.index import Index, ScoringIndex, StaticConfig
from retrobench.engine.attention.parts import partial
from retrobench.engine.attention.selective import SelectiveMethod
from retrobench.measure.probe import CountingProbe
from retrobench.memory.placement import PlacementConfig
from retrobench.memory.pool import make_store
from retrobench.memory.selection import Everything, Spans, Tokens
from retrobench.memory.store import ResidentStore
from tests.support import build, kv_shape

PLACES, MANAGERS = ("gpu", "pinned", "cpu"), ("none", "host", "device")
STORES = list(itertools.product(PLACES, MANAGERS))
ARGS = AttentionArgs(scale=0.3)
PROMPT, NEW = 200, 40


def make_shape(pads=(0, 9)):
    return kv_shape(pad_tokens=pads, layers=(0, 2), prompt_tokens=PROMPT, max_tokens=PROMPT + NEW)


@dataclass(frozen=True, kw_only=True)
class Config(StaticConfig, PlacementConfig):
    """A selector that can offload."""

    codec: str = option("none", "how the store writes vectors down")


class Largest(ScoringIndex):
    """Tokens with the largest keys, one set per KV head."""

    def select(self, layer, q_BHTD, store, args):
        return Tokens(token_BGR=self.best((store.keys(layer) * q_BHTD[:, ::2]).sum(-1)))


class PerQueryHead(ScoringIndex):
    """Each query head chooses for itself."""

    def select(self, layer, q_BHTD, store, args):
        keys = store.keys(layer).repeat_interleave(2, 1)
        return Tokens(token_BGR=self.best((keys * q_BHTD).sum(-1)))


class Ragged(ScoringIndex):
    """The second KV head attends a third of what the first does."""

    def select(self, layer, q_BHTD, store, args):
        tokens = self.best((store.keys(layer) * q_BHTD[:, ::2]).sum(-1))
        tokens[:, 1, tokens.shape[-1] // 3 :] = -1
        return Tokens(token_BGR=tokens)


class Blocks(Index):
    """Runs of eight positions, every third one: what page methods choose."""

    def select(self, layer, q_BHTD, store, args):
        length, pads = store.length(layer), torch.tensor(self.shape.pad_tokens)
        first = pads[:, None] + torch.arange(0, length, 8)
        size = (length - first).clamp(0, 8)
        chosen = torch.arange(0, first.shape[1], 3).expand(2, 2, -1).contiguous()
        first, size = (x[:, None].expand(-1, 2, -1).int().contiguous() for x in (first, size))
        return Spans(first_BGC=first, size_BGC=size, chosen_BGN=chosen.int())


class Split(ScoringIndex):
    """Half of the tokens exactly here, the other half as a part that was computed elsewhere."""

    def select(self, layer, q_BHTD, store, args):
        tokens = self.best((store.keys(layer) * q_BHTD[:, ::2]).sum(-1))
        here, there = tokens[..., ::2], tokens[..., 1::2]
        keys, values = store.gather(layer, there)
        logit = q_BHTD.reshape(2, 2, 2, 8) @ keys.mT * args.scale
        out, lse = partial(logit.masked_fill((there < 0)[:, :, None], -torch.inf), values)
        return Tokens(token_BGR=here, partials=((out.flatten(1, 2), lse.flatten(1, 2)),))


class Sampled(ScoringIndex):
    """Every second token, weighted by two: a sampling estimator."""

    def select(self, layer, q_BHTD, store, args):
        tokens = self.best(store.keys(layer).sum(-1))[..., ::2]
        weight = torch.full(tokens.shape, 2.0).log()
        return Tokens(token_BGR=tokens, log_weight_BGR=weight)


class Kept(Index):
    """Evicts all but some tokens of the prompt, more of them in the first head."""

    needs = Needs(prompt_queries=8)

    def build(self, layer, store, prompt):
        keep = (prompt.k_BGSD * prompt.q_BHWD[:, ::2, -1:]).sum(-1).topk(60, -1).indices
        keep = keep.sort(-1).values
        keep[:, 1, 30:] = -1
        store.evict(layer, keep)

    def select(self, layer, q_BHTD, store, args):
        return Everything()


class Shuffled(Index):
    """Attends everything in another order."""

    def build(self, layer, store, prompt):
        order = torch.randperm(PROMPT, generator=torch.Generator().manual_seed(5))
        store.reorder(layer, order.expand(2, 2, -1).contiguous())

    def select(self, layer, q_BHTD, store, args):
        return Everything()


class All(Index):
    """Attends everything."""

    def select(self, layer, q_BHTD, store, args):
        return Everything()


INDEXES = [Largest, PerQueryHead, Ragged, Blocks, Split, Sampled, Kept, Shuffled]


def outputs(index_class, store=None, **options):
    """Outputs of 30 steps, and what was counted; ``store`` is a class in place of the options'."""

    class Selector(SelectiveMethod):
        name = "selector"

        def make_index(self):
            return index_class(self.config, self.shape, self.budget)

        def make_store(self):
            if store is not None:
                return store(self.shape)
            if self.config.codec != "none":
                return ResidentStore(self.shape, codec=self.config.codec)
            return make_store(self.config, self.shape)

    Selector.Config = Config
    torch.manual_seed(1)
    shape = make_shape()
    config = Config(retrieval_frac=0.1, local_tokens=8, page_tokens=4, **options)
    probe = CountingProbe()
    method, out = Selector(config, shape, probe), []
    kv = {layer: torch.randn(2, 2, 2, PROMPT + 30, 8) for layer in shape.layers}
    q = torch.randn(2, 4, PROMPT + 30, 8)
    layers = {layer: (q[:, :, :PROMPT], *kv[layer][..., :PROMPT, :]) for layer in kv}
    build(method, layers, ARGS)
    held = method.allocated()
    for step in range(PROMPT, PROMPT + 30):
        method.begin_step()
        for layer in shape.layers:
            one = slice(step, step + 1)
            out.append(method.decode(layer, q[:, :, one], *kv[layer][..., one, :], ARGS))
        method.end_step()
    method.report_counts()
    return torch.cat(out), probe.row(), held, (q, kv), method
