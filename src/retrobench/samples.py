"""Samples of one cell to rows: encode, run a session, score; a failure becomes a row."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from retrobench import fidelity, speed
from retrobench.cellrun import CellRun
from retrobench.core.spec import to_plain
from retrobench.core.task import Sample
from retrobench.engine.hf import stop_ids
from retrobench.engine.session import Decoding, Generation, NotLive, Session
from retrobench.failures import failure
from retrobench.measure.clock import make_clock, utc_now
from retrobench.measure.fidelity import write_arrays
from retrobench.measure.machine import peak_bytes, reset_peak
from retrobench.measure.probe import CountingProbe
from retrobench.record import record
from retrobench.runspec import RunSpec
from retrobench.store.results import FINAL, OK
from retrobench.tasks.prompt import EncodedPrompt, PromptTooLong
from retrobench.tasks.trace import TraceTask


def run_batch(run: CellRun, samples: list[Sample]) -> None:
    if run.task.measure == "latency":
        for sample in samples:
            _write(run, _timed(run, sample))
        return
    ready: list[tuple[Sample, EncodedPrompt]] = []
    for sample in samples:
        if sample.error:
            _write(run, _row(run, sample, "error", message=sample.error))
            continue
        supported = run.loaded.supported_tasks
        needed = sample.meta.get("like", sample.task)
        if supported is not None and needed not in supported:
            _write(run, _row(run, sample, "unsupported_by_model"))
            continue
        try:
            limit = run.loaded.context_limit
            room = None if limit is None else limit - sample.max_new_tokens
            ready.append((sample, run.prompt.encode(sample, max_prompt_tokens=room)))
        except PromptTooLong as error:
            _write(run, _row(run, sample, "prompt_too_long", message=str(error)))
    if ready:
        for row in _generate(run, ready):
            _write(run, row)


def _generate(run: CellRun, ready: list[tuple[Sample, EncodedPrompt]]) -> Iterator[dict[str, Any]]:
    try:
        if isinstance(run.task, TraceTask) and not run.task.config.replay:
            yield from _record(run, run.task, ready)
            return
        parts = run.spec.measure.parts
        if run.spec.model.source == "trace" and parts != ("fidelity",):
            raise ValueError("a trace has no answers to score: use measure=fidelity")
        compared = _compare(run, ready) if "fidelity" in parts else None
        if compared is None or "score" in parts:
            result, facts = _session(run, ready)
            rows = [
                _scored(run, sample, encoded, result, facts, index)
                for index, (sample, encoded) in enumerate(ready)
            ]
        else:
            facts = _facts(compared.generation, compared.live, len(ready), run)
            rows = [_row(run, s, OK, **_prompt_facts(encoded), **facts) for s, encoded in ready]
        if compared is not None:
            rows = [
                {**row, "fidelity": found} for row, found in zip(rows, compared.rows, strict=True)
            ]
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:
        status, message = failure(error)
        for sample, encoded in ready:
            facts = {"prompt_tokens": encoded.num_tokens, "prompt_hash": encoded.text_hash}
            yield _row(run, sample, status, message=message, **facts)
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
        return _row(run, sample, status, message=message)
    return _row(run, sample, OK, **facts)


def _tail_tokens(spec: RunSpec, ready: list[tuple[Sample, EncodedPrompt]]) -> int:
    if spec.protocol.name == "query_aware":
        return 0
    if len(ready) > 1 and spec.protocol.name == "query_agnostic":
        raise ValueError("protocol=query_agnostic runs with engine.batch=1 only")
    if spec.protocol.name == "decode_tail":
        return spec.protocol.tail_tokens
    encoded = ready[0][1]
    return encoded.num_tokens - encoded.context_tokens


def _session(
    run: CellRun, ready: list[tuple[Sample, EncodedPrompt]]
) -> tuple[Generation, dict[str, Any]]:
    spec, device = run.spec, str(run.loaded.model.device)
    probe = CountingProbe(spans=spec.measure.name == "latency")
    longest = max(sample.max_new_tokens for sample, _ in ready)
    reset_peak(device)
    session = Session(
        run.loaded.model,
        run.method,
        spec.method_config,
        [encoded.ids for _, encoded in ready],
        probe=probe,
        clock=make_clock(device),
        max_new_tokens=longest,
        budget=spec.budget,
        chunk_tokens=spec.engine.chunk_tokens,
        on_prefill=lambda done: run.progress.detail(f"prefill {done}"),
    )
    try:
        decoding = Decoding(
            max_new_tokens=longest,
            temperature=spec.engine.temperature,
            top_p=spec.engine.top_p,
            seed=spec.engine.seed,
        )
        ends = stop_ids(run.loaded.model, run.loaded.tokenizer)
        result = session.generate(decoding, ends, _tail_tokens(spec, ready))
    finally:
        session.close()
    silent = probe.missing(session.layers, result.decode_steps)
    if silent:
        raise NotLive(f"layers {silent} did not report every decode step")
    return result, _facts(result, probe.row(), len(ready), run)


def _facts(result: Generation, live: dict[str, Any], batch: int, run: CellRun) -> dict[str, Any]:
    return {
        "prefill_s": result.prefill_s,
        "seal_s": result.seal_s,
        "decode_s": result.decode_s,
        "decode_steps": result.decode_steps,
        "batch": batch,
        "live": live,
        "footprint": to_plain(result.footprint),
        "peak_bytes": peak_bytes(str(run.loaded.model.device)),
        "method_stats": result.method_stats,
    }


def _prompt_facts(encoded: EncodedPrompt) -> dict[str, Any]:
    return {
        "prompt_tokens": encoded.num_tokens,
        "prompt_hash": encoded.text_hash,
        "truncated": encoded.truncated,
    }


def _record(
    run: CellRun, task: TraceTask, ready: list[tuple[Sample, EncodedPrompt]]
) -> Iterator[dict[str, Any]]:
    """Rows of ``task=trace``: what was written where."""
    if run.spec.method != "full":
        raise ValueError("task=trace records full attention's trajectory: use method=full")
    for sample, encoded in ready:
        result, live, written = record(
            run.loaded,
            sample,
            encoded,
            task.folder,
            steps=task.config.steps,
            tail_tokens=_tail_tokens(run.spec, [(sample, encoded)]),
            chunk_tokens=run.spec.engine.chunk_tokens,
        )
        facts = {**_prompt_facts(encoded), **_facts(result, live, 1, run)}
        yield _row(run, sample, OK, trace={"path": str(task.folder), "bytes": written}, **facts)


def _compare(run: CellRun, ready: list[tuple[Sample, EncodedPrompt]]) -> fidelity.Fidelity:
    """The method against full attention on the same trajectory; arrays to the cell's folder."""
    spec = run.spec
    found = fidelity.measure(
        fidelity.Setup(
            model=run.loaded.model,
            method=run.method,
            config=spec.method_config,
            prompts=[encoded.ids for _, encoded in ready],
            clock=make_clock(str(run.loaded.model.device)),
            budget=spec.budget,
            chunk_tokens=spec.engine.chunk_tokens,
            steps=spec.measure.steps,
            tail_tokens=_tail_tokens(spec, ready),
            stop_ids=stop_ids(run.loaded.model, run.loaded.tokenizer),
            on_prefill=lambda done: run.progress.detail(f"fidelity, prefill {done}"),
            logits=spec.model.source != "trace",
        )
    )
    if spec.measure.arrays:
        folder = Path(spec.options.results_dir) / run.cell.key / "fidelity"
        samples = [sample.id for sample, _ in ready]
        write_arrays(folder, samples, found.arrays, found.rows[0]["layers"])
    return found


def _scored(
    run: CellRun,
    sample: Sample,
    encoded: EncodedPrompt,
    result: Generation,
    facts: dict[str, Any],
    index: int,
) -> dict[str, Any]:
    ids = result.token_ids[index][: sample.max_new_tokens]
    text = run.loaded.tokenizer.decode(ids, skip_special_tokens=True)
    text, stopped = run.prompt.trim_answer(text, sample.stop)
    return _row(
        run,
        sample,
        OK,
        score=run.task.score(sample, text),
        prediction=text,
        **_prompt_facts(encoded),
        rules=_rules(run, sample),
        generated_tokens=len(ids),
        stop_reason="stop_string" if stopped else result.stop_reasons[index],
        **facts,
    )


def _rules(run: CellRun, sample: Sample) -> dict[str, Any]:
    """What rendered the prompt and ended the answer, for the audit."""
    return {
        "template": run.prompt.template_hash,
        "stop_ids": sorted(stop_ids(run.loaded.model, run.loaded.tokenizer)),
        "stop": list(sample.stop),
        "max_new_tokens": sample.max_new_tokens,
        "truncate": sample.meta.get("truncate"),
    }


def _row(run: CellRun, sample: Sample, status: str, **facts: Any) -> dict[str, Any]:
    return {
        "sample": sample.id,
        "task": sample.task,
        "length": sample.length,
        "status": status,
        "score": None,
        "references": list(sample.references),
        "meta": dict(sample.meta),
        **facts,
        **run.stamp,
        "time": utc_now(),
    }


def _write(run: CellRun, row: dict[str, Any]) -> None:
    run.writer.append(row)
    run.tracker.row(row)
    run.outcome.ran += 1
    if row["status"] not in FINAL:
        run.outcome.failed[row["status"]] = run.outcome.failed.get(row["status"], 0) + 1
        run.progress.say(f"{row['sample']}: {row['status']}: {row.get('message', '')}")
    run.progress.advance()
