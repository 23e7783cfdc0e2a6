"""What a row says of one answer: the prompt, the counts of its session, the score."""

from typing import Any

from retrobench.core.spec import to_plain
from retrobench.core.task import Sample
from retrobench.engine.generation import Generation
from retrobench.measure.clock import utc_now
from retrobench.measure.machine import peak_bytes
from retrobench.run.context import RunContext
from retrobench.run.failures import failure
from retrobench.store.row_file import OK
from retrobench.tasks.prompt import EncodedPrompt


def session_fields(
    result: Generation, counts: dict[str, Any], batch: int, run: RunContext
) -> dict[str, Any]:
    """What a session took. ``seal_s`` is the time of the index build."""
    return {
        "prefill_s": result.prefill_s,
        "seal_s": result.build_s,
        "decode_s": result.decode_s,
        "decode_steps": result.decode_steps,
        "batch": batch,
        "live": counts,
        "footprint": to_plain(result.footprint),
        "peak_bytes": peak_bytes(run.device),
        "method_stats": result.method_stats,
    }


def prompt_fields(encoded: EncodedPrompt) -> dict[str, Any]:
    """What was asked."""
    warning = {"warning": encoded.warning} if encoded.warning else {}
    return {
        "prompt_tokens": encoded.num_tokens,
        "prompt_hash": encoded.text_hash,
        "prompt_tail": encoded.tail,
        "truncated": encoded.truncated,
        **warning,
    }


def scored(
    run: RunContext, sample: Sample, result: Generation, index: int, fields: dict[str, Any]
) -> dict[str, Any]:
    """Row of one answer of the batch; ``fields`` of its session and prompt."""
    ids = result.token_ids[index][: sample.max_new_tokens]
    answer = run.prompt.answer(ids, sample.meta.get("chat", True))
    text, stopped = run.prompt.trim_answer(answer, sample.stop)
    return row(
        run,
        sample,
        OK,
        score=run.task.score(sample, text),
        prediction=text,
        rules=_rules(run, sample),
        generated_tokens=len(ids),
        stop_reason="stop_string" if stopped else result.stop_reasons[index],
        **fields,
    )


def _rules(run: RunContext, sample: Sample) -> dict[str, Any]:
    """What rendered the prompt and ended the answer, for the audit."""
    return {
        "template": run.prompt.template_hash,
        "stop_ids": sorted(run.loaded.stop_ids),
        "stop": list(sample.stop),
        "max_new_tokens": sample.max_new_tokens,
        "truncate": sample.meta.get("truncate"),
    }


def failed(run: RunContext, sample: Sample, error: BaseException, **fields: Any) -> dict[str, Any]:
    """Row of a sample that an exception ended."""
    status, message = failure(error)
    return row(run, sample, status, message=message, **fields)


def row(run: RunContext, sample: Sample, status: str, **fields: Any) -> dict[str, Any]:
    """Row of a sample, answered or not."""
    return {
        "sample": sample.id,
        "task": sample.task,
        "length": sample.length,
        "status": status,
        "score": None,
        "references": list(sample.references),
        "meta": dict(sample.meta),
        **fields,
        **run.stamp,
        "time": utc_now(),
    }
