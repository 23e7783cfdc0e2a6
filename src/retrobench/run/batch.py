"""Samples that go through the model together, for every cell of a group: from prompt to rows."""

from collections.abc import Sequence
from dataclasses import replace
from functools import partial, reduce
from pathlib import Path
from typing import Any

import torch
from retrobench_kernels.dispatch import forms_used

from retrobench.core.method import Needs
from retrobench.core.task import Sample
from retrobench.engine.generation import Decoding, Generation
from retrobench.engine.hf import MethodBypassed
from retrobench.engine.prefill import PrefilledPrompt
from retrobench.engine.prefill_cache import PrefillCache
from retrobench.engine.replay import TraceRecorder
from retrobench.engine.session import Session
from retrobench.engine.sparse_prefill import SparsePrefill
from retrobench.engine.stream import streamed_prompt
from retrobench.evaluate import fidelity, key_search
from retrobench.measure.fidelity import write_arrays
from retrobench.measure.machine import reset_peak
from retrobench.measure.probe import CountingProbe
from retrobench.run import rows, studies, timed
from retrobench.run.context import OpenSession, RunContext
from retrobench.run.conversation import Conversation
from retrobench.run.shared import SharedPrefill
from retrobench.run.spec import RunSpec
from retrobench.store.row_file import OK
from retrobench.tasks.prompt import TAIL_CHARACTERS, EncodedPrompt, PromptTooLong
from retrobench.tasks.trace import TraceTask

_REPEAT_SEEDS = 1_000_003  # between the seeds of a question's repeats
GRAPH_CHECK_STEPS = 8  # how often the host looks for the end of an answer on a GPU


@torch.inference_mode()
def run_batch(cells: Sequence[RunContext], samples: list[Sample]) -> None:
    """Rows of these samples in every cell. Cells differ in method and measure only."""
    if cells[0].task.measure is not None:
        for sample in samples:
            timed.run_sample(cells, sample)
        return
    ready = [asked for sample in samples if (asked := _encode(cells, sample))]
    if not ready:
        return
    talks = [[one] for one in ready[0].apart] or [ready]
    sessions = sum(
        SESSIONS[part] * (len(talks) if part != "fidelity" else 1)
        for run in cells
        for part in _parts(run)
    )
    alone = sessions == 1 and _parts(cells[0]) == ("score",) and cells[0].spec.streams
    shared = SharedPrefill(lambda: _prefill(cells, ready, alone), sessions, len(cells))
    for run in cells:
        forms_used()  # forget those of the cell before
        open_session = partial(run.open_session, shared)
        try:
            compared = _compare(run, ready, open_session) if "fidelity" in _parts(run) else None
            if "record" in _parts(run):
                found = studies.record(run, ready, open_session)
            elif "search" in _parts(run):
                found = studies.search(run, ready, open_session)
            elif compared is not None and "score" not in _parts(run):
                found = _unscored(run, ready, compared)
            else:
                found = []
                for talk in talks:
                    rest = {"rest": talk[0].rest} if ready[0].apart else {}
                    found += _answered(run, talk, partial(open_session, **rest))
            if compared is not None:  # of a whole conversation: in the row of its first turn
                for row, one in zip(found, compared.rows, strict=False):
                    row["fidelity"] = one
        except (KeyboardInterrupt, SystemExit):
            raise
        except BaseException as error:
            found = [
                rows.failed(run, turn, error, **rows.prompt_fields(asked.prompt))
                for asked in ready
                for turn in asked.turns
            ]
        kernels = forms_used()
        for row in found:
            extra = {"kernels": kernels, **shared.fields(row.get("prefill_s"))}
            run.write({**row, **extra} if row["status"] == OK else row)


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


SESSIONS = {
    "record": 1,
    "search": 1,
    "score": 1,
    "latency": 2,  # times and counts are taken apart
    "fidelity": 2,  # the reference run and the method alone
}


def _parts(run: RunContext) -> tuple[str, ...]:
    """What is done with a prompt in this cell: keys of ``SESSIONS``, its number of sessions."""
    if isinstance(run.task, TraceTask) and not run.task.config.replay:
        return ("record",)
    return run.spec.measure.parts


def _needs(run: RunContext) -> Needs:
    if "search" in _parts(run):
        return key_search.QueryRecorder.needs
    return TraceRecorder.needs if "record" in _parts(run) else run.spec.needs


def _prefill(
    cells: Sequence[RunContext], ready: list[Conversation], streamed: bool
) -> PrefilledPrompt:
    """One prefill that serves all cells, from disk where it is kept there.

    ``streamed``: it runs when the only session builds.
    """
    run = cells[0]
    model, kind, prompts = run.loaded.model, run.spec.prefill, [a.prompt.ids for a in ready]
    asked: dict[str, Any] = {
        "clock": run.clock,
        "needs": reduce(Needs.__or__, map(_needs, cells)),
        "chunk_tokens": run.spec.engine.chunk_tokens,
        "tail_tokens": _tail_tokens(run.spec, ready[0].prompt),
        "room": max(_room(run, ready) for run in cells),
        "on_chunk": lambda done: run.progress.detail(f"prefill {done}"),
    }
    if streamed:
        return streamed_prompt(model, prompts, sparse=SparsePrefill.of(kind), **asked)
    cache = PrefillCache(run.spec.engine.prefill_cache_gib)
    return cache.prefill(model, run.loaded.identity, prompts, kind=kind, **asked)


def _room(run: RunContext, ready: list[Conversation]) -> int:
    """Tokens that a session of a cell may add to the prompt."""
    if "record" in _parts(run):
        return run.task.config.steps
    if "search" in _parts(run):
        return run.spec.measure.steps
    if _parts(run) != ("fidelity",):
        return max(asked.new_tokens for asked in ready)
    return fidelity.new_tokens(run.spec.measure.steps, ready[0].follow_ups)


def _tail_tokens(spec: RunSpec, prompt: EncodedPrompt) -> int:
    if spec.protocol.name == "query_aware":
        return 0
    if spec.protocol.name == "decode_tail":
        return spec.protocol.tail_tokens
    return prompt.num_tokens - prompt.context_tokens


def _answered(
    run: RunContext, ready: list[Conversation], open_session: OpenSession
) -> list[dict[str, Any]]:
    """Rows of the first turns, then of the later ones of a conversation (batch 1)."""
    if run.spec.model.source == "trace":
        raise ValueError("a trace has no answers to score: use measure=fidelity")
    engine, first, talk = run.spec.engine, ready[0], run.spec.protocol.name == "multi_turn"
    timed = run.spec.measure.name == "latency"
    new_tokens = max(asked.new_tokens for asked in ready)
    device = run.loaded.model.device
    reset_peak(str(device))
    decoding = Decoding(
        max_new_tokens=max(turn.max_new_tokens for asked in ready for turn in asked.turns),
        temperature=engine.temperature,
        top_p=engine.top_p,
        top_k=engine.top_k,
        seed=engine.seed + _REPEAT_SEEDS * first.sample.meta.get("repeat", 0),
        # tokens beyond an answer's end would stay in a conversation
        check_every=GRAPH_CHECK_STEPS if device.type == "cuda" and not talk else 1,
    )
    ends = run.loaded.stop_ids
    stop = run.prompt.stopper(first.sample) if talk else None
    probe, counts = CountingProbe(counting=not timed), []
    executor = engine.executor if engine.temperature == 0 else "eager"
    answers: list[tuple[Generation, int]] = []  # and the number of tokens before each
    with open_session(new_tokens, probe=probe, executor=executor) as session:
        given, before = None, session.prompt.num_tokens
        for turn in range(len(first.turns)):
            if turn:
                run.progress.detail(f"turn {turn + 1}")
                given = [*answers[-1][0].pending(), *first.follow_ups[turn - 1]]
                before = session.length + len(given)
            if talk:
                decoding = replace(decoding, max_new_tokens=first.turns[turn].max_new_tokens)
            result = session.generate(decoding, ends, stop, given)
            answers.append((result, before))
            if not timed:
                counts.append(_counts(probe, session, result.decode_steps))
    if timed:
        steps = [result.decode_steps for result, _ in answers]
        counts = _count_again(open_session, new_tokens, session.stepped, steps)
    return _scored(run, ready, answers, counts, session.executor.name)


def _scored(
    run: RunContext,
    ready: list[Conversation],
    answers: list[tuple[Generation, int]],
    counts: list[dict[str, Any]],
    executor: str,
) -> list[dict[str, Any]]:
    """Answers as rows: one for each prompt of the batch, or for each turn of a conversation."""
    found, first = [], ready[0]
    fields = rows.session_fields(answers[0][0], counts[0], len(ready), run)
    fields["executor"] = executor
    for index, asked in enumerate(ready):
        own = {**fields, **rows.prompt_fields(asked.prompt)}
        found.append(rows.scored(run, asked.sample, answers[0][0], index, own))
    for turn, (result, before) in enumerate(answers[1:], 1):
        own = rows.session_fields(result, counts[turn], 1, run) | {"executor": executor}
        own |= rows.prompt_fields(first.prompt)
        own |= {"prompt_tokens": before, "prompt_hash": first.hash_of(turn)}
        own |= {"prompt_tail": first.turns[turn].question[-TAIL_CHARACTERS:]}
        found.append(rows.scored(run, first.turns[turn], result, 0, own))
    return found


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


def _unscored(
    run: RunContext, ready: list[Conversation], compared: fidelity.Fidelity
) -> list[dict[str, Any]]:
    """Rows of prompts that were compared and not answered."""
    fields = rows.session_fields(compared.generation, compared.counts, len(ready), run)
    return [
        rows.row(run, turn, OK, **rows.prompt_fields(asked.prompt), **fields)
        for asked in ready
        for turn in asked.turns
    ]


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
        stop_ids=run.loaded.stop_ids,
        follow_ups=ready[0].follow_ups,
        logits=spec.model.source != "trace",
    )
    if spec.measure.arrays:
        folder = Path(spec.options.results_dir) / run.cell.key / "fidelity"
        samples = [asked.sample.id for asked in ready]
        write_arrays(folder, samples, found.arrays, found.rows[0]["layers"])
    return found
