"""Where training starts: a stream with named dims, codes of tokens, heads that look back.

The constructed model's idea with random codes: the first two layers copy the tokens at some
distances into dims of their own; ``circuits`` fills the rest.
"""

from __future__ import annotations

import math
import re

import torch
from torch import Tensor
from torch.nn import Module, functional

from retrobench.engine.embedded import vocabulary

CODE_DIM = 44  # of the part of a token's code that slots hold: its kind, then its identity
KINDS = {  # of those that match the first, "plain" if no other
    "verb": r"Ġ(is|are|was)",
    "number": r"Ġ?[0-9]{1,3}",
    "word start": r"Ġ[a-z]{1,2}",
    "hex": r"Ġ?[0-9a-f]{2}",
    "name start": r"Ġ[A-Z]{2}",
    "capitals": r"[A-Z]{1,2}",
    "word part": r"[a-z]{1,2}",
    "separator": r";",
    "dots": r"Ġ?\.\.\.",
    "text": r"Ġtext",
    "colon": r":",
    "joint": r",|Ġand",
    "space": r"Ġ",
    "plain": r".*",
    "equals": r"Ġ?=",  # last: the only kind that slot 4 holds
}
IDENTITY = len(KINDS)  # the first dim of a code that tells tokens of a kind apart
# which dims of the code of the token at a distance stand in the stream
SLOTS = {
    0: (0, CODE_DIM),
    1: (0, CODE_DIM),
    2: (0, 34),
    3: (0, 30),
    4: (IDENTITY - 1, IDENTITY + 17),
    5: (IDENTITY, CODE_DIM),
    7: (IDENTITY, CODE_DIM),
}
TOPIC = -1  # the slot of the name spoken of, as a sum of its parts
KIND_SHARE = 0.25  # of a code's power that tokens of one kind share


def power(distance: int) -> float:
    """Of a slot, where a whole code has 1."""
    start, end = SLOTS[distance]
    kind = KIND_SHARE if start == 0 else 0.0
    return kind + (1 - KIND_SHARE) * (end - max(start, IDENTITY)) / (CODE_DIM - IDENTITY)


OWN = 0.4  # norm of a token's own word, of which outputs are made, in units of a slot's
FAR = power(5) + power(7)
PARTS = OWN**2 + sum(map(power, SLOTS))
SLOTS[TOPIC] = (IDENTITY, CODE_DIM)
PAST_DIM = sum(end - start for start, end in SLOTS.values()) + 3
NEAR_KEY = 1.5
UNIT_STD = 0.2  # RMS over the stream of one part (the words, slot 0)
PLURAL = "Ġare"  # several things were asked for
COMMON = (
    ". , : ; ? - = Ċ Ġ Ġthe Ġa Ġof Ġfor Ġin Ġto Ġand Ġwith Ġtext Ġlist Ġvalue Ġnumber Ġmagic "
    "Ġspecial ĠThe ĠOne ĠAnswer Question Ġ= Ġ... Ġis Ġare VAR ĠVAR Ġwas"
).split()


class Layout:
    """Which dims of the residual stream hold what."""

    def __init__(self, hidden: int) -> None:
        self.hidden = hidden
        self.words = slice(0, hidden - PAST_DIM)
        at, self.slots = hidden - PAST_DIM, {}
        for distance, (start, end) in SLOTS.items():
            self.slots[distance] = slice(at, at + end - start)
            at += end - start
        self.sink, self.plural, self.count = at, at + 1, at + 2
        self.raw = UNIT_STD * math.sqrt(hidden)  # norm of one part

    def half(self, group: int) -> slice:
        """The half of the words that a KV head of ``group`` carries."""
        middle = (self.words.stop + 1) // 2
        return slice(0, middle) if group == 0 else slice(middle, self.words.stop)


class Codes:
    """Start embeddings: random codes, a dim that marks each kind of tokens; BOS is the sink."""

    def __init__(self, vocab: dict[str, int], first: int, layout: Layout) -> None:
        self.vocab, self.layout = vocab, layout
        kind = kinds(vocab)
        dims = CODE_DIM
        near = torch.zeros(len(vocab), dims)
        # signs: any part of a code has the same power in every token, so norms say nothing
        near[:, IDENTITY:] = torch.randn(len(vocab), dims - IDENTITY).sign()
        near[:, IDENTITY:] *= math.sqrt((1 - KIND_SHARE) / (dims - IDENTITY))
        near[torch.arange(len(vocab)), kind] = math.sqrt(KIND_SHARE)
        self.near = near  # what slots hold the first dims of
        width = layout.words.stop
        share = math.sqrt(dims / width)
        rest = _unit(len(vocab), width - dims) * math.sqrt(1 - share**2)
        table = torch.zeros(len(vocab), layout.hidden)
        table[:, layout.words] = torch.cat([near * share, rest], dim=1) * OWN
        table[:, layout.slots[0]] = near
        table[first] = 0
        table[first, layout.sink] = math.sqrt(PARTS)
        self.table = table * layout.raw

    def direction(self, distance: int, *names: str) -> Tensor:
        """Reads, of a stream whose parts are unit vectors, 1 where the token at ``distance`` is one
        of ``names``: kinds or tokens."""
        found, at = torch.zeros(self.layout.hidden), self.layout.slots[distance].start
        tokens = [name for name in names if name not in KINDS]
        start, end = SLOTS[distance]
        for kind in (name for name in names if name in KINDS):
            number = list(KINDS).index(kind)
            if not start <= number < end:
                raise ValueError(f"the slot of distance {distance} does not hold the kind {kind}")
            found[at + number - start] = 1 / math.sqrt(KIND_SHARE)
        if tokens:
            mine = self.near[[self.vocab[token] for token in tokens], start:end]
            seen = self.near[[self.vocab[t] for t in COMMON if t not in tokens], start:end]
            # blind to common tokens, as far as the dims allow
            blind = seen.T @ seen + 0.1 * torch.eye(end - start)
            code = torch.linalg.solve(blind, mine.mean(0))
            found[at : at + end - start] += code / (mine @ code).mean()
        return found


def _unit(rows: int, dims: int) -> Tensor:
    return functional.normalize(torch.randn(rows, dims), dim=1)


def kinds(vocab: dict[str, int]) -> Tensor:
    """Kind of every token, as its place among ``KINDS``."""
    patterns = {n: re.compile(pattern) for n, pattern in enumerate(KINDS.values())}
    rest = list(KINDS).index("plain")
    del patterns[rest]  # it matches anything
    found = torch.full((len(vocab),), rest)
    plain = {f"Ġ{word}" for word in vocabulary.read("spaced")}
    plain -= {"Ġis", "Ġare", "Ġwas", "Ġtext", "Ġand"}  # words that are kinds of their own
    for text, token in vocab.items():
        if text not in plain:
            found[token] = next((n for n, p in patterns.items() if p.fullmatch(text)), rest)
    return found


class Rotary:
    """Which dims of a head turn with the distance and which hold content."""

    def __init__(self, dim: int, theta: float) -> None:
        self.dim = dim
        self.turn = theta ** -(torch.arange(0, dim, 2).double() / dim)
        self.fast = self.turn > 3e-4
        still = (self.turn * 32768 < 0.35).nonzero().flatten().tolist()
        self.content = torch.tensor(still + [i + dim // 2 for i in still])

    def near_key(self) -> Tensor:
        """Key bias that every kernel of a KV head shares; small, so that content makes most of a
        key's norm."""
        bias = torch.zeros(self.dim)
        bias[: self.dim // 2][self.fast] = NEAR_KEY
        return bias

    def near_query(self, distance: float, width: float, logit: float) -> Tensor:
        """Query bias of a kernel centred ``distance`` tokens back, about ``width`` tokens wide,
        whose top is ``logit``."""
        bias, n = torch.zeros(self.dim), self.dim // 2
        used = self.fast & (self.turn < 1.6 / width)
        strength = logit * math.sqrt(self.dim) / NEAR_KEY / int(used.sum())
        angle = -self.turn * distance
        bias[:n][used] = (strength * torch.cos(angle[used])).float()
        bias[n:][used] = (strength * torch.sin(angle[used])).float()
        return bias


def look_back(layers: list[Module], rotary: Rotary, layout: Layout) -> None:
    """Layer 0 copies distances 1 to 4, layer 1, by one head of each KV head, 5 and 7."""
    near, far = {0: 1, 1: 2, 2: 3, 3: 4}, {0: 5, 2: 7}
    for layer, distances in zip(layers, (near, far), strict=False):
        attention, dim = layer.self_attn, rotary.dim
        attention.k_proj.bias.copy_(rotary.near_key().repeat(2))
        own = layout.slots[0].start
        for n, distance in distances.items():
            (start, end), group = SLOTS[distance], n // 2 * dim
            attention.q_proj.bias[n * dim : (n + 1) * dim] = rotary.near_query(distance, 1, 160.0)
            rows = torch.arange(end - start)
            # the two heads of a group share the values and write different dims of them
            whole = torch.arange(CODE_DIM)
            attention.v_proj.weight[group + whole] = 0.0
            attention.v_proj.weight[group + whole, own + whole] = 1.0
            at = layout.slots[distance]
            # power of the stream so far
            before = (0,) if distance < 5 else (0, 1, 2, 3, 4)
            parts = OWN**2 + sum(map(power, before))
            back = layout.raw / math.sqrt(layout.hidden / parts)
            attention.o_proj.weight[at.start + rows, n * dim + start + rows] = back
