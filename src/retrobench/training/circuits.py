"""What the matching layers start as; every gain and logit is a point to train from.

A circuit is one query head, or one in each of the two KV heads where each carries half of the
words. A key that none should attend to loses against the first token, the sink, whose value says
nothing.
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
    PARTS,
    PLURAL,
    SLOTS,
    Codes,
    Layout,
    Rotary,
)

SINK = 0  # the flag of the first token
MARK = 90  # value dim of a mark, behind those of other heads
SAME, RARE = 14.0, 8.0  # logit of the same word; how often a word comes that counts half
FLAG = 6.0  # what the other flags stand at
# logits of a match at distances 0, 1 ...
MATCH_LOGITS = (20.0, 7.0, 5.0, 4.0, 3.0)
SAID_LOGITS = (14.0, 7.0, 5.0, 4.0)
# what circuits write, in units of an embedding's words
COPY, ASK, SAID, NEXT, REPEAT, HOP, COUNT = 5.0, 12.0, -2.8, 30.0, 10.0, 16.0, 12.0
LISTED, UNSAID, OFTEN = 12.0, 14.0, 30.0
# kinds of parts of names and values
PARTIAL = ("number", "hex", "name start", "capitals", "word part")
SEPARATOR = ";"  # between the words of a list


class Layer:
    """One layer's attention as queries, keys and values of its circuits."""

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
        self.attention, self.rotary = layer.self_attn, rotary
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
        """Keys hold the identities of the tokens in slots, with power as ``shares``: apart, or
        mixed where all do not fit."""
        width = len(self.compared)
        counts = {slot: SLOTS[slot][1] - IDENTITY for slot in shares}
        apart = sum(counts.values()) <= width
        basis, at = torch.linalg.qr(torch.randn(width, width))[0], 0
        rows = group * self.rotary.dim + self.compared
        for slot, count in counts.items():
            if not apart:
                basis, at = torch.linalg.qr(torch.randn(width, width))[0], 0
            mix = basis[:, at : at + count] * math.sqrt(shares[slot] * CODE_DIM / count)
            at += count
            first = self._identity(slot)
            self.attention.k_proj.weight[rows, first : first + count] = mix
            self._mixes[group, slot] = mix

    def _identity(self, slot: int) -> int:
        return self.layout.slots[slot].start + IDENTITY - SLOTS[slot][0]

    def compare(self, query: int, pairs: list[tuple[int, int, float]]) -> None:
        """Match the query's token at a distance with a key's: (distance, the key's, logit)."""
        rows = query * self.rotary.dim + self.compared
        for here, there, logit in pairs:
            mix = self._mixes[query // 2, there][:, : SLOTS[here][1] - IDENTITY]
            dims = mix.shape[1]
            # a match weighs its logit, however many dims it has
            scale = logit * self.root / self.unit**2 * (CODE_DIM - IDENTITY) / dims
            scale /= float(mix[:, 0].square().sum()) * (1 - KIND_SHARE)
            first = self._identity(here)
            self.attention.q_proj.weight[rows, first : first + dims] += mix * scale

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

    def mark(self, query: int, read: Tensor, dim: int) -> None:
        """A head puts the mean of what ``read`` sees where it looks into a dim of the stream."""
        at = query // 2 * self.rotary.dim + MARK
        self.attention.v_proj.weight[at] = read * self.unit
        self.attention.o_proj.weight[dim] = 0.0
        self.attention.o_proj.weight[dim, query * self.rotary.dim + MARK] = (
            self.layout.raw / self.unit
        )

    def write(self, query: int, rows: Tensor, to: int, gain: float) -> None:
        """Add value dims ``rows`` of a head to the words from dim ``to`` on."""
        scale = gain * self.layout.raw / self.unit
        columns = to + torch.arange(len(rows))
        self.attention.o_proj.weight[columns, query * self.rotary.dim + rows] = scale


def notice(layer: Layer) -> None:
    """The free heads of layer 1: how often a listed word has come, as n / (n + RARE); and whether
    several things were asked for just now."""
    count, plural = 1, 3
    layer.keys(0, {0: 1.0})
    layer.compare(count, [(0, 0, SAME)])
    layer.seek(count, SINK, 0.85 * SAME + math.log(RARE))
    layer.mark(count, layer.sees(0, "word start") + layer.sees(2, "number"), layer.layout.count)
    layer.flag(1, 1, layer.sees(0, PLURAL))
    layer.near(plural, 20, 48, 40.0)
    layer.seek(plural, 1, 24.0)
    layer.seek(plural, SINK, 58.0)
    layer.mark(plural, layer.sees(0, PLURAL), layer.layout.plural)


def ask_and_next(layer: Layer) -> None:
    """Where an answer begins, what was asked for; at the end of a value, the next key of those
    asked for, or else the same again."""
    ask, listed, following, again = 0, 1, 2, 3
    layer.near(ask, 6, 12, 40.0)
    for flag, token in enumerate(("Ġfor", "Ġ", "Ġvalue"), 1):
        layer.flag(0, flag, layer.sees(1, token))
        layer.seek(ask, flag, 20.0)
    layer.seek(ask, SINK, 102.0)
    for now, before in (("verb", "Ġtext"), ("Ġ", ":")):
        layer.seek(ask, SINK, -25.0, layer.sees(0, now))
        layer.seek(ask, SINK, -25.0, layer.sees(1, before))
    rows = layer.read(0, slice(0, 96))
    layer.write(ask, rows, 0, ASK)
    # what the list of an answer holds so far, kept where a separator has no use for its past
    layer.flag(0, 4, layer.sees(1, SEPARATOR))
    layer.near(listed, 12, 40, 6.0)
    layer.seek(listed, 4, 14.0)
    layer.seek(listed, SINK, 33.5)
    layer.seek(listed, SINK, -15.0, layer.sees(0, SEPARATOR))
    at = layer.layout.slots[5]
    first, end = SLOTS[5]
    layer.write(listed, rows[first:end], at.start, LISTED)
    layer.keys(1, {2: 1.0, 3: 1.0})
    layer.compare(following, [(5, 2, 30.0), (5, 3, 30.0)])
    layer.flag(1, 1, layer.sees(1, ","))
    layer.flag(1, 2, layer.sees(1, "Ġand"))
    layer.near(following, 30, 60, 20.0)
    layer.seek(following, 1, 18.0)
    layer.seek(following, 2, 28.0)
    layer.seek(following, SINK, 118.0)
    layer.near(again, 0, 1, 80.0)
    layer.seek(again, SINK, 115.0)
    for query in (following, again):
        layer.seek(query, SINK, 20.0)
        layer.seek(query, SINK, -20.0, layer.marked(layer.layout.plural))
        layer.seek(query, SINK, -20.0, layer.sees(0, "number"))
        layer.seek(query, SINK, -20.0, layer.sees(2, "number"))
        layer.seek(query, SINK, -20.0, layer.sees(3, ":"))
    words = slice(64, 128)
    layer.write(following, layer.read(1, words), words.start, NEXT)
    rows = layer.read(1, layer.layout.slots[7], at=64)
    layer.write(again, rows, SLOTS[7][0], REPEAT)


def match(layer: Layer) -> None:
    """Copy what followed the same history; take back what followed it just now."""
    for group in (0, 1):
        copy, said = 2 * group, 2 * group + 1
        # the power of a slot that makes the mixture's noise smallest
        layer.keys(group, {n: logit / MATCH_LOGITS[0] for n, logit in enumerate(MATCH_LOGITS, 1)})
        layer.compare(copy, [(n, n + 1, logit) for n, logit in enumerate(MATCH_LOGITS)])
        # plain words from the text before the question and answer, parts of names from there
        layer.near(copy, 20, 48, -7.0)
        layer.near(copy, 20, 48, 13.0, layer.sees(0, *PARTIAL))
        layer.seek(copy, SINK, 7.0)
        layer.compare(said, [(n, n + 1, logit) for n, logit in enumerate(SAID_LOGITS)])
        layer.near(said, 20, 48, 30.0)
        layer.seek(said, SINK, 46.0)
        layer.seek(said, SINK, 30.0, layer.sees(0, *PARTIAL))
        half = layer.layout.half(group)
        rows = layer.read(group, half)
        layer.write(copy, rows, half.start, COPY)
        layer.write(said, rows, half.start, SAID)


def hop_and_count(layer: Layer) -> None:
    """One KV head goes from a number or a name to the name that is given it, the other finds
    a listed word that comes often and has not been said."""
    layer.keys(0, {0: 1.0, 1: 0.6})
    layer.flag(0, 1, layer.sees(2, "Ġ="))
    layer.flag(0, 2, layer.sees(4, "Ġ="))
    at = 0
    for query, distance, kind in ((0, 5, "number"), (1, 7, "capitals")):
        layer.compare(query, [(0, 0, 20.0), (1, 1, 12.0)])
        rows = layer.read(0, layer.layout.slots[distance], at)
        layer.write(query, rows, SLOTS[distance][0], HOP)
        at += len(rows)
        layer.seek(query, query + 1, 24.0)
        layer.seek(query, SINK, 70.0)
        layer.seek(query, SINK, -28.0, layer.sees(0, kind))
    # a listed word that comes often and has not been said
    count = 2
    layer.flag(1, 1, layer.sees(0, "word start"))
    layer.flag(1, 2, layer.sees(2, "number"))
    layer.flag(1, 3, layer.marked(layer.layout.count))
    layer.keys(1, {0: 1.0})
    listing = layer.sees(0, SEPARATOR)
    for flag, logit in ((1, 20.0), (2, 20.0), (3, OFTEN)):
        layer.seek(count, flag, logit, listing)
    layer.compare(count, [(5, 0, -UNSAID)])
    layer.near(count, 0, 3000, 3.0)
    layer.seek(count, SINK, 44.0)
    layer.seek(count, SINK, -30.0, listing)
    layer.write(count, layer.read(1, slice(0, 96)), 0, COUNT)
