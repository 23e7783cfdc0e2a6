"""Samples that go through the model together, for every cell of a group: from prompt to rows."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import reduce
from pathlib import Path
from typing import Any

import torch

from retrobench.core.method import Needs
from retrobench.core.task import Sample
from retrobench.engine.generation import Decoding, Generation
from retrobench.engine.hf import MethodBypassed, stop_ids
from retrobench.engine.prefill import PrefilledPrompt
from retrobench.engine.prefill_cache import PrefillCache
from retrobench.engine.replay import TraceRecorder
from retrobench.engine.session import Session
from retrobench.evaluate import fidelity
from retrobench.evaluate.record import record
from retrobench.measure.fidelity import write_arrays
from retrobench.measure.machine import reset_peak
from retrobench.measure.probe import CountingProbe
from retrobench.run import rows, timed
from retrobench.run.context import OpenSession, RunContext
from retrobench.run.conversation import Conversation
from retrobench.run.failures import failure
from retrobench.run.shared import SharedPrefill
from retrobench.run.spec import RunSpec
from retrobench.store.results import OK
from retrobench.tasks.prompt import EncodedPrompt, PromptTooLong
from retrobench.tasks.trace import TraceTask

GRAPH_CHECK_STEPS = 8  # how often the host looks for the end of an answer on a GPU


@torch.inference_mode()
def run_batch(cells: Sequence[RunContext], samples: list[Sample]) -> None:
    """Rows of these samples in every cell. Cells differ in method and measure only."""
    if cells[0].task.measure == "latency":
        for sample in samples:
            timed.run_sample(cells, sample)
        return
    ready = [asked for sample in samples if (asked := _encode(cells, sample))]
    if not ready:
        return
    shared = SharedPrefill(lambda: _prefill(cells, ready), sum(map(_uses, cells)), len(cells))
    for run in cells:
        for row in _rows(run, ready, shared):
            run.write({**row, **shared.fields()} if row["status"] == OK else row)


def _encode(cells: Sequence[RunContext], sample: Sample) -> Conversation | None:
    """What to run for a sample; None, and a row of each turn, if it cannot be asked."""
    run = cells[0]
    asked = run.turns(sample)
    if sample.error:
        status, message = "error", {"message": sample.error}
    else:
        try:
            return Conversation.encode(run.prompt, asked, run.loaded.context_limit)
        except PromptTooLong as error:
            status, message = "prompt_too_long", {"message": str(error)}
    for cell in cells:
        for turn in asked:
            cell.write(rows.row(cell, turn, status, **message))
    return None


def _uses(run: RunContext) -> int:
    """Sessions that a cell opens on one prompt."""
    if _records(run):
        return 1
    parts, uses = run.spec.measure.parts, 0
    if "fidelity" in parts:
        uses += 2  # the reference run and the method alone
    if "score" in parts or "latency" in parts:
        uses += 2 if "latency" in parts else 1  # times and counts are taken apart
    return uses


def _records(run: RunContext) -> bool:
    return isinstance(run.task, TraceTask) and not run.task.config.replay


def _needs(cells: Sequence[RunContext]) -> Needs:
    found = [TraceRecorder.needs if _records(run) else run.needs for run in cells]
    return reduce(Needs.__or__, found)


def _prefill(cells: Sequence[RunContext], ready: list[Conversation]) -> PrefilledPrompt:
    """One prefill that serves all cells, from disk where it is kept there."""
    run = cells[0]
    engine, model = run.spec.engine, run.loaded.model
    cache = PrefillCache(engine.prefill_cache_gib)
    return cache.prefill(
        model,
        run.loaded.identity,
        [asked.prompt.ids for asked in ready],
        clock=run.clock,
        needs=_needs(cells),
        chunk_tokens=engine.chunk_tokens,
        tail_tokens=_tail_tokens(run.spec, ready[0].prompt),
        room=max(_room(run, ready) for run in cells),
        on_chunk=lambda done: run.progress.detail(f"prefill {done}"),
    )


def _room(run: RunContext, ready: list[Conversation]) -> int:
    """Tokens that a session of a cell may add to the prompt."""
    if _records(run):
        return run.task.config.steps
    if "score" in run.spec.measure.parts or "latency" in run.spec.measure.parts:
        return max(asked.new_tokens for asked in ready)
    return fidelity.new_tokens(run.spec.measure.steps, ready[0].follow_ups)


def _tail_tokens(spec: RunSpec, prompt: EncodedPrompt) -> int:
    if spec.protocol.name == "query_aware":
        return 0
    if spec.protocol.name == "decode_tail":
        return spec.protocol.tail_tokens
    return prompt.num_tokens - prompt.context_tokens


def _rows(
    run: RunContext, ready: list[Conversation], shared: SharedPrefill
) -> Iterator[dict[str, Any]]:
    try:
        open_session = run.opener(shared)
        if isinstance(run.task, TraceTask) and _records(run):
            yield from _record(run, run.task, ready, open_session)
            return
        parts = run.spec.measure.parts
        if run.spec.model.source == "trace" and parts != ("fidelity",):
            raise ValueError("a trace has no answers to score: use measure=fidelity")
        compared = _compare(run, ready, open_session) if "fidelity" in parts else None
        if compared is None or "score" in parts:
            found = _answered(run, ready, open_session)
        else:
            fields = rows.session_fields(compared.generation, compared.counts, len(ready), run)
            found = [
                rows.row(run, turn, OK, **rows.prompt_fields(asked.prompt), **fields)
                for asked in ready
                for turn in asked.turns
            ]
        if compared is not None:  # of a whole conversation: in the row of its first turn
            for row, one in zip(found, compared.rows, strict=False):
                row["fidelity"] = one
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:
        status, message = failure(error)
        for asked in ready:
            fields = rows.prompt_fields(asked.prompt)
            for turn in asked.turns:
                yield rows.row(run, turn, status, message=message, **fields)
        return
    yield from found


def _answered(
    run: RunContext, ready: list[Conversation], open_session: OpenSession
) -> list[dict[str, Any]]:
    """Rows of the first turns, then of the later ones of a conversation (batch 1)."""
    spec, first = run.spec, ready[0]
    timed = spec.measure.name == "latency"
    new_tokens = max(asked.new_tokens for asked in ready)
    reset_peak(str(run.loaded.model.device))
    probe, counts = CountingProbe(counting=not timed), []
    executor = spec.engine.executor if spec.engine.temperature == 0 else "eager"
    answers: list[tuple[Generation, int]] = []
    with open_session(new_tokens, probe=probe, executor=executor) as session:
        for result, before in _turns(run, session, ready):
            answers.append((result, before))
            if not timed:
                counts.append(_counts(probe, session, result.decode_steps))
    if timed:
        steps = [result.decode_steps for result, _ in answers]
        counts = _count_again(open_session, new_tokens, session.stepped, steps)
    found, extra = [], {"executor": session.executor.name}
    fields = rows.session_fields(answers[0][0], counts[0], len(ready), run) | extra
    for index, asked in enumerate(ready):
        fields |= rows.prompt_fields(asked.prompt)
        found.append(rows.scored(run, asked.sample, answers[0][0], index, fields))
    for turn, (result, before) in enumerate(answers[1:], 1):
        fields = rows.session_fields(result, counts[turn], 1, run) | extra
        fields |= rows.prompt_fields(first.prompt)
        fields |= {"prompt_tokens": before, "prompt_hash": first.hash_of(turn)}
        found.append(rows.scored(run, first.turns[turn], result, 0, fields))
    return found


def _turns(
    run: RunContext, session: Session, ready: list[Conversation]
) -> Iterator[tuple[Generation, int]]:
    """Each turn's answer, and how many tokens came before it."""
    engine, first = run.spec.engine, ready[0]
    talk = run.spec.protocol.name == "multi_turn"
    on_gpu = session.ids_BS.is_cuda
    decoding = Decoding(
        max_new_tokens=max(asked.sample.max_new_tokens for asked in ready),
        temperature=engine.temperature,
        top_p=engine.top_p,
        seed=engine.seed,
        # tokens beyond an answer's end would stay in a conversation
        check_every=GRAPH_CHECK_STEPS if on_gpu and not talk else 1,
    )
    ends = stop_ids(run.loaded.model, run.loaded.tokenizer)
    stop = run.prompt.stopper(first.sample) if talk else None
    result = session.generate(decoding, ends, stop)
    yield result, session.prompt.num_tokens
    for turn, ids in enumerate(first.follow_ups, 1):
        run.progress.detail(f"turn {turn + 1}")
        given = [*result.pending(), *ids]
        before = session.length + len(given)
        result = session.continue_generation(given, decoding, ends, stop)
        yield result, before


def _counts(probe: CountingProbe, session: Session, steps: int) -> dict[str, Any]:
    """What was counted since the last time; MethodBypassed for a layer that was silent."""
    silent = probe.missing(session.layers, steps)
    if silent:
        raise MethodBypassed(f"layers {silent} did not report every decode step")
    found = probe.row()
    probe.reset()
    return found


def _count_again(
    open_session: OpenSession, new_tokens: int, stepped: list[torch.Tensor], turns: list[int]
) -> list[dict[str, Any]]:
    """Counts and spans of steps that were timed without: the same tokens once more, per turn."""
    probe, found, start = CountingProbe(spans=True), [], 0
    with open_session(new_tokens, probe=probe) as session:
        for steps in turns:
            if steps:
                session.feed(torch.cat(stepped[start : start + steps], 1))
            session.report_counts()
            found.append(_counts(probe, session, steps))
            start += steps
    return found


def _record(
    run: RunContext, task: TraceTask, ready: list[Conversation], open_session: OpenSession
) -> Iterator[dict[str, Any]]:
    """Rows of ``task=trace``: what was written where."""
    if run.spec.method != "full":
        raise ValueError("task=trace records full attention's trajectory: use method=full")
    for asked in ready:
        result, counts, written = record(
            open_session,
            run.loaded,
            asked.sample,
            asked.prompt,
            task.folder,
            steps=task.config.steps,
        )
        fields = {
            **rows.prompt_fields(asked.prompt),
            **rows.session_fields(result, counts, 1, run),
        }
        where = {"path": str(task.folder), "bytes": written}
        yield rows.row(run, asked.sample, OK, trace=where, **fields)


def _compare(
    run: RunContext, ready: list[Conversation], open_session: OpenSession
) -> fidelity.Fidelity:
    """The method against full attention on the same trajectory; arrays to the cell's folder."""
    spec = run.spec
    run.progress.detail("fidelity")
    found = fidelity.measure(
        open_session,
        run.clock,
        steps=spec.measure.steps,
        stop_ids=stop_ids(run.loaded.model, run.loaded.tokenizer),
        follow_ups=ready[0].follow_ups,
        logits=spec.model.source != "trace",
    )
    if spec.measure.arrays:
        folder = Path(spec.options.results_dir) / run.cell.key / "fidelity"
        samples = [asked.sample.id for asked in ready]
        write_arrays(folder, samples, found.arrays, found.rows[0]["layers"])
    return found
