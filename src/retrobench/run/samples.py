"""Samples of one cell to rows: encode, run a session, score; a failure becomes a row."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from retrobench.core.task import Sample
from retrobench.engine.hf import stop_ids
from retrobench.engine.prefill_memo import reusing
from retrobench.engine.session import Decoding, Generation, NotLive, Session
from retrobench.evaluate import fidelity, speed
from retrobench.evaluate.record import record
from retrobench.measure.clock import make_clock
from retrobench.measure.fidelity import write_arrays
from retrobench.measure.machine import reset_peak
from retrobench.measure.probe import CountingProbe
from retrobench.run import rows as answers
from retrobench.run.context import CellRun
from retrobench.run.conversation import Conversation
from retrobench.run.failures import failure
from retrobench.run.spec import RunSpec
from retrobench.store.results import FINAL, OK
from retrobench.tasks.prompt import EncodedPrompt, PromptTooLong
from retrobench.tasks.trace import TraceTask


def turns(spec: RunSpec, sample: Sample) -> tuple[Sample, ...]:
    """What a sample asks in one session, a row each."""
    if spec.protocol.name != "multi_turn":
        return (sample,)
    return sample.turns(spec.protocol.turns)


def run_batch(run: CellRun, samples: list[Sample]) -> None:
    if run.task.measure == "latency":
        for sample in samples:
            _write(run, _timed(run, sample))
        return
    ready = [asked for sample in samples if (asked := _encode(run, sample))]
    if not ready:
        return
    with reusing(int(run.spec.engine.reuse_prefill_gib * 2**30)) as memo:
        before = memo.hits
        for row in _generate(run, ready):
            if memo.hits > before and "prefill_s" in row:
                row["prefill_s"] = None  # not the time of a prefill
            _write(run, row)


def _encode(run: CellRun, sample: Sample) -> Conversation | None:
    """What to run for a sample; None, and a row of each turn, if it cannot be asked."""
    supported, message = run.loaded.supported_tasks, {}
    asked = turns(run.spec, sample)
    if sample.error:
        status, message = "error", {"message": sample.error}
    elif supported is not None and sample.meta.get("like", sample.task) not in supported:
        status = "unsupported_by_model"
    else:
        try:
            return Conversation.encode(run.prompt, asked, run.loaded.context_limit)
        except PromptTooLong as error:
            status, message = "prompt_too_long", {"message": str(error)}
    for turn in asked:
        _write(run, answers.row(run, turn, status, **message))
    return None


def _generate(run: CellRun, ready: list[Conversation]) -> Iterator[dict[str, Any]]:
    try:
        if isinstance(run.task, TraceTask) and not run.task.config.replay:
            yield from _record(run, run.task, ready)
            return
        parts = run.spec.measure.parts
        if run.spec.model.source == "trace" and parts != ("fidelity",):
            raise ValueError("a trace has no answers to score: use measure=fidelity")
        compared = _compare(run, ready) if "fidelity" in parts else None
        if compared is None or "score" in parts:
            rows = _answered(run, ready)
        else:
            facts = answers.facts(compared.generation, compared.live, len(ready), run)
            rows = [
                answers.row(run, turn, OK, **answers.prompt_facts(asked.prompt), **facts)
                for asked in ready
                for turn in asked.turns
            ]
        if compared is not None:  # of a whole conversation: in the row of its first turn
            for row, found in zip(rows, compared.rows, strict=False):
                row["fidelity"] = found
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:
        status, message = failure(error)
        for asked in ready:
            facts = answers.prompt_facts(asked.prompt)
            for turn in asked.turns:
                yield answers.row(run, turn, status, message=message, **facts)
        return
    yield from rows


def _timed(run: CellRun, sample: Sample) -> dict[str, Any]:
    try:
        detail = run.progress.detail
        facts = speed.measure(run.spec, run.loaded, run.method, sample, detail)
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:
        status, message = failure(error)
        return answers.row(run, sample, status, message=message)
    return answers.row(run, sample, OK, **facts)


def _tail_tokens(spec: RunSpec, prompt: EncodedPrompt) -> int:
    if spec.protocol.name == "query_aware":
        return 0
    if spec.protocol.name == "decode_tail":
        return spec.protocol.tail_tokens
    return prompt.num_tokens - prompt.context_tokens


def _answered(run: CellRun, ready: list[Conversation]) -> list[dict[str, Any]]:
    """Rows of the first turns, then of the later ones of a conversation (batch 1)."""
    spec, device = run.spec, str(run.loaded.model.device)
    probe = CountingProbe(spans=spec.measure.name == "latency")
    reset_peak(device)
    session = Session(
        run.loaded.model,
        run.method,
        spec.method_config,
        [asked.prompt.ids for asked in ready],
        probe=probe,
        clock=make_clock(device),
        max_new_tokens=max(asked.new_tokens for asked in ready),
        budget=spec.budget,
        chunk_tokens=spec.engine.chunk_tokens,
        on_prefill=lambda done: run.progress.detail(f"prefill {done}"),
    )
    decoding = Decoding(
        max_new_tokens=max(asked.sample.max_new_tokens for asked in ready),
        temperature=spec.engine.temperature,
        top_p=spec.engine.top_p,
        seed=spec.engine.seed,
    )
    ends, first = stop_ids(run.loaded.model, run.loaded.tokenizer), ready[0]
    talk = spec.protocol.name == "multi_turn"
    stop = run.prompt.stopper(first.sample.stop) if talk else None
    rows = []
    try:
        result = session.generate(decoding, ends, _tail_tokens(spec, first.prompt), stop)
        facts = answers.facts(result, _live(probe, session, result), len(ready), run)
        for index, asked in enumerate(ready):
            facts |= answers.prompt_facts(asked.prompt)
            rows.append(answers.scored(run, asked.sample, result, index, facts))
        for turn, ids in enumerate(first.follow_ups, 1):
            run.progress.detail(f"turn {turn + 1}")
            probe.reset()
            given = [*result.pending(), *ids]
            before = session.length + len(given)
            result = session.go_on(given, decoding, ends, stop)
            facts = answers.facts(result, _live(probe, session, result), 1, run)
            facts |= answers.prompt_facts(first.prompt)
            facts |= {"prompt_tokens": before, "prompt_hash": first.hash_of(turn)}
            rows.append(answers.scored(run, first.turns[turn], result, 0, facts))
    finally:
        session.close()
    return rows


def _live(probe: CountingProbe, session: Session, result: Generation) -> dict[str, Any]:
    silent = probe.missing(session.layers, result.decode_steps)
    if silent:
        raise NotLive(f"layers {silent} did not report every decode step")
    return probe.row()


def _record(run: CellRun, task: TraceTask, ready: list[Conversation]) -> Iterator[dict[str, Any]]:
    """Rows of ``task=trace``: what was written where."""
    if run.spec.method != "full":
        raise ValueError("task=trace records full attention's trajectory: use method=full")
    for asked in ready:
        result, live, written = record(
            run.loaded,
            asked.sample,
            asked.prompt,
            task.folder,
            steps=task.config.steps,
            tail_tokens=_tail_tokens(run.spec, asked.prompt),
            chunk_tokens=run.spec.engine.chunk_tokens,
        )
        facts = {**answers.prompt_facts(asked.prompt), **answers.facts(result, live, 1, run)}
        where = {"path": str(task.folder), "bytes": written}
        yield answers.row(run, asked.sample, OK, trace=where, **facts)


def _compare(run: CellRun, ready: list[Conversation]) -> fidelity.Fidelity:
    """The method against full attention on the same trajectory; arrays to the cell's folder."""
    spec = run.spec
    found = fidelity.measure(
        fidelity.Setup(
            model=run.loaded.model,
            method=run.method,
            config=spec.method_config,
            prompts=[asked.prompt.ids for asked in ready],
            follow_ups=ready[0].follow_ups,
            clock=make_clock(str(run.loaded.model.device)),
            budget=spec.budget,
            chunk_tokens=spec.engine.chunk_tokens,
            steps=spec.measure.steps,
            tail_tokens=_tail_tokens(spec, ready[0].prompt),
            stop_ids=stop_ids(run.loaded.model, run.loaded.tokenizer),
            on_prefill=lambda done: run.progress.detail(f"fidelity, prefill {done}"),
            logits=spec.model.source != "trace",
        )
    )
    if spec.measure.arrays:
        folder = Path(spec.options.results_dir) / run.cell.key / "fidelity"
        samples = [asked.sample.id for asked in ready]
        write_arrays(folder, samples, found.arrays, found.rows[0]["layers"])
    return found


def _write(run: CellRun, row: dict[str, Any]) -> None:
    run.writer.append(row)
    run.tracker.row(row)
    run.outcome.ran += 1
    if row["status"] not in FINAL:
        run.outcome.failed[row["status"]] = run.outcome.failed.get(row["status"], 0) + 1
        run.progress.say(f"{row['sample']}: {row['status']}: {row.get('message', '')}")
    run.progress.advance()
