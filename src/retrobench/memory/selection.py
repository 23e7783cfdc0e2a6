"""What an index chooses in a decode step, and what a store hands to attention for it.

A selection is ``Everything``, ``Tokens`` (positions) or ``Spans`` (runs of storage slots: pages,
clusters). Each may come with clusters to attend through estimates, and with parts of the softmax
that were computed elsewhere.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any

import torch
from retrobench_kernels.wave_attention import (
    Estimation,
    PageCache,
    Pool,
    Steady,
    cluster_tokens,
)
from torch import Tensor

Partial = tuple[Tensor, Tensor]  # float32 ``(o_BHD, lse_BH)`` over a set that nobody else attends


@dataclass(frozen=True, slots=True)
class Estimate:
    """Clusters attended through their centroid (RetroInfer's estimation zone, paper Eq. 2 and 4).

    A cluster of ``size`` tokens adds ``size * exp(q.c)`` to the softmax's denominator and
    ``exp(q.c) * value_sum`` to its numerator; size 0 means absent. ``gain_BGC`` is added to the
    logits.
    """

    centroid_BGCD: Tensor
    value_sum_BGCD: Tensor
    size_BGC: Tensor
    gain_BGC: Tensor | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Selection:
    """What every kind of selection may carry.

    ``estimate`` is attended beside the chosen tokens; ``estimated_tokens`` counts what it stands
    for, mean per row and KV head; ``members`` gives those positions to a probe that asks.
    ``partials`` are ready parts of the softmax, over ``partial_tokens`` tokens of all rows and
    heads together. ``index_bytes`` is what choosing has read.
    """

    estimate: Estimate | None = None
    estimated_tokens: float | Tensor = 0.0
    members: Callable[[], Tensor] | None = None
    partials: tuple[Partial, ...] = ()
    partial_tokens: float | Tensor = 0
    index_bytes: float | Tensor = 0

    def carried(self) -> dict[str, Any]:
        """What comes with the chosen tokens, whatever kind of selection names them."""
        return {field.name: getattr(self, field.name) for field in fields(Selection)}


@dataclass(frozen=True, slots=True, kw_only=True)
class Everything(Selection):
    """All tokens that the store holds."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Tokens(Selection):
    """Positions ``token_BGR``, -1 padded, so that heads may differ in number.

    The second axis is KV heads, or query heads where each chooses for itself. ``log_weight_BGR`` is
    added to the logits (sampling estimators weigh a token by its inverse probability).
    """

    token_BGR: Tensor
    log_weight_BGR: Tensor | None = None

    def spans(self) -> Spans:
        """Every token as a run of its own (where slots are positions)."""
        valid_BGR = self.token_BGR >= 0
        chosen = torch.arange(valid_BGR.shape[-1], dtype=torch.int32, device=valid_BGR.device)
        return Spans(
            first_BGC=self.token_BGR.clamp_min(0).int(), size_BGC=valid_BGR.int(),
            chosen_BGN=chosen.expand(valid_BGR.shape).contiguous(), largest=1, **self.carried(),
        )  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Spans(Selection):
    """Chosen runs of storage slots, such as pages or clusters of a KV head.

    ``first_BGC`` and ``size_BGC`` (int32) say where every run begins and how long it is;
    ``chosen_BGN`` (int32, -1 padded) numbers the chosen ones. ``largest`` is the most tokens of a
    run, where the host knows it: else it asks the device when runs must be gathered.
    ``estimation`` is an estimate by number of the run, for stores that are read in place;
    ``page_BGC`` the first page of each run, where a block cache has pages of runs.
    """

    first_BGC: Tensor
    size_BGC: Tensor
    chosen_BGN: Tensor
    largest: int | None = None
    estimation: Estimation | None = None
    page_BGC: Tensor | None = None

    def tokens(self) -> Tokens:
        """The runs as positions (where slots are positions)."""
        assert self.estimation is None, "a store that gathers spans needs `estimate`"
        return Tokens(token_BGR=self.token_BGR, **self.carried())

    @property
    def token_BGR(self) -> Tensor:
        """Slots of all tokens of the chosen runs, -1 padded."""
        return cluster_tokens(self.first_BGC, self.size_BGC, self.chosen_BGN, self.largest)

    @property
    def num_tokens(self) -> Tensor:
        """Tokens of all chosen runs, a tensor of one element."""
        size = self.size_BGC.gather(-1, self.chosen_BGN.clamp_min(0).long())
        return (size * (self.chosen_BGN >= 0)).sum()


def listed(index_BGR: Tensor, count: int) -> Tensor:
    """Which of ``count`` things a -1 padded list names, bool ``BGC``."""
    found = index_BGR.new_zeros(*index_BGR.shape[:2], count + 1, dtype=torch.bool)
    place = index_BGR.masked_fill(index_BGR < 0, count).long()  # padding: beyond the last one
    return found.scatter_(-1, place, True)[..., :count]


@dataclass(frozen=True, slots=True)
class SpanView:
    """Where attention finds spans: a pool, tokens that are always attended, and a block cache."""

    pool: Pool
    steady: Steady
    cache: PageCache | None = None
