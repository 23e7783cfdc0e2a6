"""Fidelity of a method on a batch of prompts: two sessions on full attention's trajectory.

In the first the model runs on exact attention while the method answers each decode call beside it
(`engine.shadow`). The second forces the same tokens through the method alone, for its logits.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from retrobench.core.budget import Budget
from retrobench.core.method import Method, Probe
from retrobench.core.shapes import KVShape
from retrobench.engine.session import Generation, Session
from retrobench.engine.shadow import Shadow
from retrobench.measure.fidelity import FidelityProbe, logit_gap
from retrobench.measure.probe import CountingProbe


@dataclass(frozen=True, kw_only=True)
class Setup:
    """What the sessions of one batch share."""

    model: Any
    method: type[Method]
    config: Any
    prompts: Sequence[Sequence[int]]
    clock: Callable[[], float]
    budget: Budget | None
    chunk_tokens: int
    steps: int
    tail_tokens: int
    stop_ids: frozenset[int]
    on_prefill: Callable[[int], None] | None = None
    follow_ups: Sequence[Sequence[int]] = ()  # ids between the answers of a conversation (batch 1)
    logits: bool = True  # false for a recorded trace: its logits are not the method's

    def session(self, make: Callable[..., Method], probe: Probe) -> Session:
        """A session of these prompts."""
        return Session(
            self.model,
            make,
            self.config,
            self.prompts,
            probe=probe,
            clock=self.clock,
            max_new_tokens=self.steps * (1 + len(self.follow_ups)) + sum(map(len, self.follow_ups)),
            budget=self.budget,
            chunk_tokens=self.chunk_tokens,
            on_prefill=self.on_prefill,
        )


@dataclass(slots=True, kw_only=True)
class Fidelity:
    """Outcome: a mapping per row for JSON, all arrays, and the forced session's counts."""

    rows: list[dict[str, Any]] = field(default_factory=list)
    arrays: dict[str, np.ndarray] = field(default_factory=dict)
    generation: Generation = field(default_factory=Generation)
    live: dict[str, Any] = field(default_factory=dict)


@torch.inference_mode()
def measure(setup: Setup) -> Fidelity:
    """Run both sessions. Rows of a batch stop together, when all have ended."""
    judge: FidelityProbe | None = None

    def shadow(config: Any, shape: KVShape, probe: Probe, budget: Budget | None) -> Shadow:
        nonlocal judge
        judge = FidelityProbe(shape.pad_tokens)
        return Shadow(setup.method(config, shape, judge, budget), judge)

    dense = setup.session(shadow, CountingProbe())
    try:
        prompt_ids = dense.ids_BS
        full, tokens = _greedy(dense, setup)
    finally:
        dense.close()
    assert judge is not None
    result = Fidelity(arrays=judge.arrays())
    forced = _forced(setup, prompt_ids, tokens, result)
    for row in range(len(setup.prompts)):
        found = judge.row(row)
        if setup.logits and forced:
            found["logits"] = logit_gap(full, forced, row)
        result.rows.append(found)
    return result


def _greedy(session: Session, setup: Setup) -> tuple[list[Tensor], list[Tensor]]:
    """(logits of each decode step, chosen tokens) of full attention, from the sealed prompt on."""
    logits, steps = _prompt(session, session.ids_BS, setup.tail_tokens)
    tokens: list[Tensor] = []

    def feed(token_B1: Tensor) -> Tensor:
        logits = session.step(token_B1)
        tokens.append(token_B1)
        steps.append(logits.cpu())
        return logits

    for follow_up in ((), *setup.follow_ups):
        for token in follow_up:
            logits = feed(torch.tensor([[token]], device=session.ids_BS.device))
        ended = torch.zeros(len(setup.prompts), dtype=torch.bool)
        for _ in range(setup.steps - 1):
            token_B1 = logits.argmax(-1, keepdim=True)
            ended |= torch.tensor([int(t) in setup.stop_ids for t in token_B1])
            if bool(ended.all()):
                break
            logits = feed(token_B1)
    return steps, tokens


def _prompt(session: Session, ids_BS: Tensor, tail_tokens: int) -> tuple[Tensor, list[Tensor]]:
    split = ids_BS.shape[1] - tail_tokens
    logits, steps = session.prefill(split), []
    session.seal()
    for position in range(split, ids_BS.shape[1]):
        logits = session.step(ids_BS[:, position : position + 1])
        steps.append(logits.cpu())
    return logits, steps


def _forced(setup: Setup, ids_BS: Tensor, tokens: list[Tensor], result: Fidelity) -> list[Tensor]:
    """Logits of the method alone on the given tokens; its times, bytes and counts."""
    probe = CountingProbe()
    session = setup.session(setup.method, probe)
    taken = result.generation
    try:
        split = ids_BS.shape[1] - setup.tail_tokens
        start = setup.clock()
        session.prefill(split)
        taken.prefill_s = setup.clock() - start
        session.seal()
        taken.seal_s = setup.clock() - start - taken.prefill_s
        taken.footprint = session.method.allocated()
        start = setup.clock()
        tail = [ids_BS[:, i : i + 1] for i in range(split, ids_BS.shape[1])]
        steps = [session.step(token).cpu() for token in (*tail, *tokens)]
        taken.decode_s, taken.decode_steps = setup.clock() - start, len(steps)
        taken.method_stats = dict(session.method.stats())
        result.live = probe.row()
    finally:
        session.close()
    return steps
