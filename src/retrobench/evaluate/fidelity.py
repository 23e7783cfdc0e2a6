"""Fidelity of a method on a batch of prompts: two sessions on full attention's trajectory.

In the first the model runs on exact attention while the method answers each decode call beside it
(a reference run). The second forces the same tokens through the method alone, for its logits.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from retrobench.engine.generation import Generation
from retrobench.engine.session import Session
from retrobench.measure.fidelity import FidelityProbe, logit_gap
from retrobench.measure.probe import CountingProbe


@dataclass(slots=True, kw_only=True)
class Fidelity:
    """A mapping per row for JSON, all arrays, and the counts of the teacher-forced session."""

    rows: list[dict[str, Any]] = field(default_factory=list)
    arrays: dict[str, np.ndarray] = field(default_factory=dict)
    generation: Generation = field(default_factory=Generation)
    counts: dict[str, Any] = field(default_factory=dict)


def new_tokens(steps: int, follow_ups: Sequence[Sequence[int]]) -> int:
    """Tokens that a session may add to the prompt."""
    return steps * (1 + len(follow_ups)) + sum(map(len, follow_ups))


@torch.inference_mode()
def measure(
    open_session: Callable[..., Session],
    clock: Callable[[], float],
    *,
    steps: int,
    stop_ids: frozenset[int],
    follow_ups: Sequence[Sequence[int]] = (),
    logits: bool = True,
) -> Fidelity:
    """Run both sessions. Rows of a batch stop together, when all have ended.

    ``follow_ups``: ids between the answers of a conversation (batch 1). ``logits``: false for a
    recorded trace, whose logits are not the method's.
    """
    comparator, room = FidelityProbe(), new_tokens(steps, follow_ups)
    with open_session(room, probe=comparator, comparator=comparator, executor="eager") as reference:
        exact, tokens_BT = _greedy(reference, steps, stop_ids, follow_ups)
    result = Fidelity(arrays=comparator.arrays())
    forced = _forced(open_session, clock, room, tokens_BT, result)
    for row in range(tokens_BT.shape[0]):
        found = comparator.row(row)
        if logits and forced:
            found["logits"] = logit_gap(exact, forced, row)
        result.rows.append(found)
    return result


def _greedy(
    session: Session, steps: int, stop_ids: frozenset[int], follow_ups: Sequence[Sequence[int]]
) -> tuple[list[Tensor], Tensor]:
    """(logits of each decode step, tokens ``BT`` after the prompt) of full attention."""
    batch, device = session.ids_BS.shape[0], session.ids_BS.device
    tokens = [torch.empty(batch, 0, dtype=torch.int64, device=device)]
    logits = [x.cpu() for x in session.teacher_forced(tokens[0])]

    def feed(token_B1: Tensor) -> None:
        tokens.append(token_B1)
        logits.append(session.step(token_B1).cpu())

    for follow_up in ((), *follow_ups):
        for token in follow_up:
            feed(torch.tensor([[token]], device=device))
        ended = torch.zeros(batch, dtype=torch.bool)
        for _ in range(steps - 1):
            token_B1 = session.logits.argmax(-1, keepdim=True)
            ended |= torch.tensor([token in stop_ids for token in token_B1[:, 0].tolist()])
            if bool(ended.all()):
                break
            feed(token_B1)
    return logits, torch.cat(tokens, 1)


def _forced(
    open_session: Callable[..., Session],
    clock: Callable[[], float],
    room: int,
    tokens_BT: Tensor,
    result: Fidelity,
) -> list[Tensor]:
    """Logits of the method alone on the given tokens; its times, bytes and counts."""
    probe, taken = CountingProbe(), result.generation
    with open_session(room, probe=probe, executor="eager") as session:
        taken.prefill_s, taken.build_s = session.prompt.seconds, session.build_s
        taken.footprint = session.allocated()
        start = clock()
        steps = [logits.cpu() for logits in session.teacher_forced(tokens_BT)]
        taken.decode_s, taken.decode_steps = clock() - start, len(steps)
        session.report_counts()
        taken.method_stats = dict(session.method.stats())
        result.counts = probe.row()
    return steps
