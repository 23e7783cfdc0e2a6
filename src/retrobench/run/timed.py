"""Samples of the tasks that are timed, not answered: ``speed``, ``machine``, ``serve``."""

import json
from collections.abc import Callable, Sequence
from functools import partial, reduce
from typing import Any

from retrobench_kernels.dispatch import forms_used

from retrobench.core.method import Needs
from retrobench.core.shapes import Footprint
from retrobench.core.task import Sample
from retrobench.engine.overlap import waiting_bytes
from retrobench.engine.prefill import PrefilledPrompt, prefill
from retrobench.engine.session import plan_session
from retrobench.engine.shape import kv_shape
from retrobench.engine.sparse_prefill import SparsePrefill
from retrobench.engine.stream import streamed_prompt
from retrobench.evaluate import machine, replay, speed
from retrobench.measure.machine import require_room
from retrobench.run import replayed, rows
from retrobench.run.context import RunContext
from retrobench.run.shared import SharedPrefill
from retrobench.store.results import ResultStore
from retrobench.store.row_file import OK
from retrobench.tasks.serve import ServeTask


def run_sample(cells: Sequence[RunContext], sample: Sample) -> None:
    """A row of the sample in every cell."""
    alone = len(cells) == 1 and cells[0].spec.streams
    make = partial(_prefill_random, cells, sample, streamed_prompt if alone else prefill)
    shared = SharedPrefill(make, len(cells), len(cells))
    for run in cells:
        forms_used()  # forget those of the cell before
        try:
            found = _measured(run, sample, shared)
            row = rows.row(run, sample, OK, **found, kernels=forms_used())
        except (KeyboardInterrupt, SystemExit):
            raise
        except BaseException as error:
            row = rows.failed(run, sample, error)
        run.write(row)


def _measured(run: RunContext, sample: Sample, shared: SharedPrefill) -> dict[str, Any]:
    """Fields of a sample in one cell."""
    spec, device = run.spec, run.device
    if isinstance(run.task, ServeTask):
        run.progress.detail(sample.id)
        found = replay.measure(replayed.replay_of(spec, run.task, run.cell), sample)
        text = json.dumps(found[replay.LABEL], indent=1)
        ResultStore(spec.options.results_dir).keep(run.cell.key, f"replay_{sample.id}.json", text)
        return found
    if spec.task == "machine":
        run.progress.detail(sample.id)
        return machine.measure(spec.task_config, sample, device)
    asked = speed.SpeedRun(
        config=spec.task_config,
        method_class=spec.method_class,
        method_config=spec.method_config,
        budget=spec.budget,
        device=device,
        executor=spec.engine.executor,
    )
    if spec.task_config.shape == "model":
        _check_memory(run, sample)
    found = speed.measure(asked, sample, partial(run.open_session, shared), run.progress.detail)
    if spec.task_config.shape == "model":
        found |= shared.fields(found["prefill_s"])
    return found


def _check_memory(run: RunContext, sample: Sample) -> None:
    """NotEnoughMemory if host or device cannot hold their part; before the prefill."""
    spec, model = run.spec, run.loaded.model
    rows, new_tokens = (0,) * int(sample.meta["batch"]), sample.max_new_tokens + speed.COUNTED_STEPS
    shape = kv_shape(model, rows, sample.length, new_tokens)
    method, dense = spec.method_class, spec.engine.dense_layers
    need = plan_session(method, spec.method_config, shape, spec.budget, dense)
    what = f"method={spec.method} with {sample.length} tokens x {len(rows)}"
    need = need + Footprint(device=waiting_bytes(shape, need, spec.streams))
    fix, mapped = "a smaller task.context or task.batch", bool(spec.model.device_map)
    require_room(need, str(model.device), what, fix, mapped=mapped)


def _prefill_random(
    cells: Sequence[RunContext], sample: Sample, make: Callable[..., PrefilledPrompt]
) -> PrefilledPrompt:
    """Random token ids, a different prompt in each row (``task.shape=model``)."""
    run = cells[0]
    return make(
        run.loaded.model,
        speed.random_prompts(run.loaded, run.spec.task_config, sample),
        clock=run.clock,
        needs=reduce(Needs.__or__, (cell.spec.needs for cell in cells)),
        chunk_tokens=run.spec.engine.chunk_tokens,
        room=sample.max_new_tokens + speed.COUNTED_STEPS,
        on_chunk=lambda done: run.progress.detail(f"prefill {done}"),
        sparse=SparsePrefill.of(run.spec.prefill),
    )
