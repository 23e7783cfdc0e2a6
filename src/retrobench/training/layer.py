"""Writes circuits into the weights of one decoder layer: queries, keys, values and rules.

A head attends where the logits of a match, of flags and of the distance together exceed that of the
first token, the sink, whose value says nothing. Keys that none should attend to lose against it.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import Module

from retrobench.training.start import (
    CODE_DIM,
    IDENTITY,
    KIND_SHARE,
    KINDS,
    OWN,
    PARTS,
    SLOTS,
    Codes,
    Layout,
    Rotary,
)

SINK = 0  # the flag of the first token
FLAG = 6.0  # what the other flags stand at
MARK = 125  # value dim of a mark, behind those of other heads
GATE = 6.0  # scale of a rule's gate, so that SiLU is nearly a ramp


class Layer:
    """One layer's attention as queries, keys and values of its circuits, its MLP as rules."""

    def __init__(
        self,
        layer: Module,
        rotary: Rotary,
        layout: Layout,
        codes: Codes,
        found: float,
        flags: int,
    ) -> None:
        """``found``: power that the layers before have added to the stream, in parts."""
        self.attention, self.mlp, self._rules = layer.self_attn, layer.mlp, 0
        self.rotary = rotary
        self.layout, self.codes = layout, codes
        self.unit = math.sqrt(layout.hidden / (PARTS + found))  # norm of a part of the input
        self.compared, self.flags = rotary.content[:-flags], rotary.content[-flags:]
        self.root = math.sqrt(rotary.dim)
        self._mixes: dict[tuple[int, int], Tensor] = {}
        for group in (0, 1):
            self.flag(group, SINK, self._sink())

    def _sink(self) -> Tensor:
        read = torch.zeros(self.layout.hidden)
        read[self.layout.sink] = 1 / math.sqrt(self.layout.hidden)
        return read

    def _scale(self, number: int) -> float:
        """What a flag stands at: neither side of the product is so small that a step moves it."""
        return math.sqrt(self.layout.hidden) if number == SINK else FLAG

    def sees(self, distance: int, *names: str) -> Tensor:
        """Reads 1 where the token at ``distance`` is one of ``names`` (kinds or tokens)."""
        return self.codes.direction(distance, *names) / self.unit

    def rows(self, head: int) -> slice:
        """Rows of a head, of queries or of keys, among its likes."""
        return slice(head * self.rotary.dim, (head + 1) * self.rotary.dim)

    def flag(self, group: int, number: int, read: Tensor) -> None:
        """Flag ``number`` of a key is what ``read`` sees."""
        at = group * self.rotary.dim + self.flags[number]
        self.attention.k_proj.weight[at] = read * self._scale(number)

    def seek(self, query: int, number: int, logit: float, when: Tensor | None = None) -> None:
        """``logit`` for keys whose flag is 1; times what ``when`` sees of the query's token."""
        at = query * self.rotary.dim + self.flags[number]
        if when is None:
            self.attention.q_proj.bias[at] += logit * self.root / self._scale(number)
        else:
            self.attention.q_proj.weight[at] += logit * self.root / self._scale(number) * when

    def keys(self, group: int, shares: dict[int, float]) -> None:
        """Keys hold the identities of the tokens in slots, with power as ``shares``. Where all do
        not fit apart, the first three do and the others are mixed in the dims that are left."""
        width, at = len(self.compared), 0
        counts = {slot: SLOTS[slot][1] - max(SLOTS[slot][0], IDENTITY) for slot in shares}
        apart = len(counts) if sum(counts.values()) <= width else 3
        rows = group * self.rotary.dim + self.compared
        for n, (slot, count) in enumerate(counts.items()):
            dims = count if n < apart else width - at
            size = max(dims, count)
            mixed = torch.linalg.qr(torch.randn(size, size))[0][:dims, :count]
            basis = torch.zeros(width, count)
            basis[at : at + dims] = mixed * math.sqrt(size / dims)
            mix = basis * math.sqrt(shares[slot] * CODE_DIM / count)
            at += count if n < apart else 0
            first = self._identity(slot)
            self.attention.k_proj.weight[rows, first : first + count] = mix
            self._mixes[group, slot] = mix

    def _identity(self, slot: int) -> int:
        return self.layout.slots[slot].start + IDENTITY - SLOTS[slot][0]

    def compare(
        self, query: int, pairs: list[tuple[int, int, float]], blind: str | None = None
    ) -> None:
        """Match the query's token at a distance with a key's: (distance, the key's, logit); but
        not if it is the token ``blind``."""
        rows = query * self.rotary.dim + self.compared
        for here, there, logit in pairs:
            mix = self._mixes[query // 2, there][:, : SLOTS[here][1] - IDENTITY]
            dims = mix.shape[1]
            # a match weighs its logit, however many dims it has
            scale = logit * self.root / self.unit**2 * (CODE_DIM - IDENTITY) / dims
            scale /= float(mix[:, 0].square().sum()) * (1 - KIND_SHARE)
            first = self._identity(here)
            if blind is not None:
                code = self.codes.near[self.codes.vocab[blind], IDENTITY : IDENTITY + dims]
                mix = mix - torch.outer(mix @ code, code) / code.square().sum()
            self.attention.q_proj.weight[rows, first : first + dims] += mix * scale

    def rule(self, gate: Tensor, up: Tensor, token: str, gain: float) -> None:
        """Where both reads see what they look for, add a token's word."""
        at, self._rules = self._rules, self._rules + 1
        self.mlp.gate_proj.weight[at] = gate * GATE
        self.mlp.up_proj.weight[at] = up
        word = self.codes.table[self.codes.vocab[token]]
        column = torch.zeros(self.layout.hidden)
        column[self.layout.words] = word[self.layout.words]
        self.mlp.down_proj.weight[:, at] = column * gain / GATE

    def copying(self, gain: float) -> None:
        """From here on the stream is read where ``gain`` words have been added."""
        parts = (self.layout.hidden / self.unit**2) + (gain * OWN) ** 2
        self.unit = math.sqrt(self.layout.hidden / parts)

    def copied(self, kind: str) -> Tensor:
        """Reads 1 where an embedding's worth of a token of a kind has been added to the words."""
        found = torch.zeros(self.layout.hidden)
        share = math.sqrt(CODE_DIM / self.layout.words.stop * KIND_SHARE) * OWN
        found[list(KINDS).index(kind)] = 1 / share
        return found / self.unit

    def near(
        self,
        query: int,
        distance: float,
        width: float,
        logit: float,
        when: Tensor | None = None,
    ) -> None:
        """``logit`` for keys about ``distance`` tokens back; times what ``when`` sees."""
        keys, near = self.rows(query // 2), self.rotary.near_key()
        self.attention.k_proj.bias[keys] = near
        # the sink stands at no distance: its logit must not depend on the length
        sink = self.attention.k_proj.weight[keys, self.layout.sink]
        away = -near / math.sqrt(self.layout.hidden)
        self.attention.k_proj.weight[keys, self.layout.sink] = torch.where(near > 0, away, sink)
        rows, bias = self.rows(query), self.rotary.near_query(distance, width, logit)
        if when is None:
            self.attention.q_proj.bias[rows] += bias
        else:
            self.attention.q_proj.weight[rows] += bias[:, None] * when

    def read(self, group: int, what: slice, at: int = 0) -> Tensor:
        """Values of a KV head, from dim ``at``, are dims ``what`` of the stream; returns theirs."""
        rows = torch.arange(what.stop - what.start)
        columns = what.start + rows
        self.attention.v_proj.weight[group * self.rotary.dim + at + rows] = 0.0
        self.attention.v_proj.weight[group * self.rotary.dim + at + rows, columns] = 1.0
        return at + rows

    def marked(self, dim: int) -> Tensor:
        """Reads what ``mark`` has put into a dim."""
        read = torch.zeros(self.layout.hidden)
        read[dim] = 1 / self.unit
        return read

    def mark(self, query: int, read: Tensor, dim: int, gain: float = 1.0) -> None:
        """A head puts the mean of what ``read`` sees where it looks into a dim of the stream."""
        at = query // 2 * self.rotary.dim + MARK
        self.attention.v_proj.weight[at] = read * self.unit
        self.attention.o_proj.weight[dim] = 0.0
        self.attention.o_proj.weight[dim, query * self.rotary.dim + MARK] = (
            gain * self.layout.raw / self.unit
        )

    def write(self, query: int, rows: Tensor, to: int, gain: float) -> None:
        """Add value dims ``rows`` of a head to the words from dim ``to`` on."""
        scale = gain * self.layout.raw / self.unit
        columns = to + torch.arange(len(rows))
        self.attention.o_proj.weight[columns, query * self.rotary.dim + rows] = scale
