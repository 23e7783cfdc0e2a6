"""Rows of prompts whose full attention is looked at and whose answers are not: traces, searches."""

from typing import Any

from retrobench.evaluate import key_search
from retrobench.evaluate.record import record as write_trace
from retrobench.run import rows
from retrobench.run.context import OpenSession, RunContext
from retrobench.run.conversation import Conversation
from retrobench.store.row_file import OK
from retrobench.tasks.trace import TraceTask


def record(
    run: RunContext, ready: list[Conversation], open_session: OpenSession
) -> list[dict[str, Any]]:
    """Rows of ``task=trace``: what was written where."""
    if run.spec.method != "full":
        raise ValueError("task=trace records full attention's trajectory: use method=full")
    assert isinstance(run.task, TraceTask)
    found, folder, config = [], run.task.folder, run.task.config
    for asked in ready:
        result, counts, written = write_trace(
            open_session,
            run.loaded,
            asked.sample,
            asked.prompt,
            folder,
            steps=config.steps,
            layers=config.layers,
            dtype=config.dtype,
        )
        fields = {
            **rows.prompt_fields(asked.prompt),
            **rows.session_fields(result, counts, 1, run),
        }
        where = {"path": str(folder), "bytes": written}
        found.append(rows.row(run, asked.sample, OK, trace=where, **fields))
    return found


def search(
    run: RunContext, ready: list[Conversation], open_session: OpenSession
) -> list[dict[str, Any]]:
    """Row of a prompt whose keys were searched (batch 1)."""
    run.progress.detail("search")
    result, found = key_search.measure(
        open_session,
        run.clock,
        run.spec.method_config,
        steps=run.spec.measure.steps,
        stop_ids=run.loaded.stop_ids,
    )
    taken = {"prefill_s": result.prefill_s, "decode_steps": result.decode_steps}
    prompt = rows.prompt_fields(ready[0].prompt)
    return [rows.row(run, ready[0].sample, OK, search=found, batch=1, **prompt, **taken)]
