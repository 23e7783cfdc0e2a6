"""From drafts to token batches of a fixed length."""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from retrobench.training.draft import Draft, Segment
from retrobench.training.families import FAMILIES

IGNORED = -100


@dataclass(frozen=True, slots=True)
class Batch:
    """``ids_BS`` and, per position, the answer token that follows it (or IGNORED).

    ``instead`` holds, by (row, position), other tokens that would be as right there.
    """

    ids_BS: Tensor
    targets_BS: Tensor
    family_B: list[str]
    instead: dict[tuple[int, int], list[int]]


class Encoder:
    """Turns drafts into ids; segments are tokenized one by one, as generation would."""

    def __init__(self, tokenizer: Any) -> None:
        self._backend = tokenizer.backend_tokenizer
        self.bos, self.pad = tokenizer.bos_token_id, tokenizer.pad_token_id

    def _ids(self, texts: list[str]) -> list[list[int]]:
        return [e.ids for e in self._backend.encode_batch(texts, add_special_tokens=False)]

    def sample(
        self, draft: Draft, tokens: int, rng: random.Random
    ) -> tuple[list[int], list[int], dict[int, list[int]]]:
        """(ids, answer mask, ids as right as the one at a place) of at most ``tokens`` ids; filler
        takes what the rest leaves."""
        asked: list[tuple[list[int], Segment]] = []
        room = tokens - 1
        must = self._ids([draft.joiner + text for text in draft.must])
        used = sum(map(len, must)) + len(self._ids([draft.head])[0])
        for question in draft.questions:
            parts = self._ids([part.text for part in question])
            cost = sum(map(len, parts))
            if asked and used + cost > room:
                break
            used += cost
            asked += zip(parts, question, strict=True)
        pieces = self._place(draft, must, room - used, rng)
        ids = [self.bos, *self._ids([draft.head])[0]]
        for piece in pieces:
            ids += piece
        tail = sum(len(part) for part, _ in asked)
        ids = ids[: max(1, tokens - tail)]  # a context that is too long loses its end
        mask = [0] * len(ids)
        instead: dict[int, list[int]] = {}
        for part, segment in asked:
            if segment.instead and len(ids) < tokens:
                instead[len(ids)] = [other[0] for other in self._ids(list(segment.instead))]
            ids += part
            mask += [int(segment.counts)] * len(part)
        return ids[:tokens], mask[:tokens], instead

    def _place(
        self, draft: Draft, must: list[list[int]], room: int, rng: random.Random
    ) -> list[list[int]]:
        if room <= 0 or not draft.filler:
            return must
        units = self._ids([draft.joiner + text for text in draft.filler])
        chosen: list[list[int]] = []
        start = rng.randrange(len(units))
        while True:
            unit = units[(start + len(chosen)) % len(units)]
            if len(unit) > room:
                break
            room -= len(unit)
            chosen.append(unit)
        places = sorted(rng.randint(0, len(chosen)) for _ in must)
        pieces: list[list[int]] = []
        at = 0
        for place, piece in zip(places, must, strict=True):
            pieces += chosen[at:place]
            pieces.append(piece)
            at = place
        return pieces + chosen[at:]


def make_batch(
    encoder: Encoder, rng: random.Random, weights: Mapping[str, float], rows: int, tokens: int
) -> Batch:
    """``rows`` samples of up to ``tokens`` ids, families drawn by weight."""
    ids_BS = torch.full((rows, tokens), encoder.pad)
    targets_BS = torch.full((rows, tokens), IGNORED)
    instead: dict[tuple[int, int], list[int]] = {}
    names = rng.choices(list(weights), list(weights.values()), k=rows)
    for row, name in enumerate(names):
        ids, mask, others = encoder.sample(FAMILIES[name](rng, tokens), tokens, rng)
        ids_BS[row, : len(ids)] = torch.tensor(ids)
        answers = [i if m else IGNORED for i, m in zip(ids, mask, strict=True)]
        targets_BS[row, : len(ids) - 1] = torch.tensor(answers[1:])
        instead |= {(row, at - 1): found for at, found in others.items()}
    return Batch(ids_BS, targets_BS, names, instead)
