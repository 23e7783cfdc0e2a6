"""Runs cells prompt by prompt: one prefill serves every cell that starts from the same prompts.

Cells that share model, task, protocol and prefill form a group. Each keeps its own lock, rows,
status and tracker; one that fails never stops the others.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack

from retrobench.core.task import Sample
from retrobench.run import plan
from retrobench.run.batch import run_batch
from retrobench.run.cell import OpenCell
from retrobench.run.plan import PreparedRun
from retrobench.run.progress import Progress
from retrobench.run.spec import RunSpec
from retrobench.run.summary import CellResult, RunSummary, settled
from retrobench.store.results import ResultStore


def run_cell(spec: RunSpec) -> CellResult:
    """Run what is missing of a cell. ValueError for what the user must change.

    Failures of single samples become rows and the cell goes on; a failure of the cell as a whole
    becomes its status.
    """
    (result,) = run_cells([spec])
    if isinstance(result, Exception):
        raise result
    return result


def run_cells(
    specs: Sequence[RunSpec], on_summary: Callable[[int, RunSummary], None] | None = None
) -> list[CellResult | Exception]:
    """Run cells, in groups that share a prefill; a result or an error for each, in order.

    ``on_summary`` hears what each cell is, by its number.
    """
    results: dict[int, CellResult | Exception] = {}
    groups: dict[tuple[str, str], list[tuple[int, PreparedRun]]] = defaultdict(list)
    for number, spec in enumerate(specs):
        try:
            store = ResultStore(spec.options.results_dir)
            store.prepare()
            prepared = plan.prepare(spec)
            summary = plan.summarise(prepared)
            if on_summary is not None:
                on_summary(number, summary)
            found = settled(summary, store, spec.options.retry)
        except Exception as error:
            results[number] = error
            continue
        if found is not None:
            results[number] = found
        else:
            groups[spec.options.results_dir, summary.group].append((number, prepared))
    for members in groups.values():
        runs = [prepared for _, prepared in members]
        whole = [runs] if plan.can_share(runs) else [[run] for run in runs]
        found = [result for group in whole for result in _run_group(group)]
        results |= {number: result for (number, _), result in zip(members, found, strict=True)}
    return [results[number] for number in range(len(specs))]


def _run_group(runs: list[PreparedRun]) -> list[CellResult | Exception]:
    store, first = ResultStore(runs[0].spec.options.results_dir), runs[0]
    title = f"{first.spec.method} {first.spec.task}"
    title += f" and {len(runs) - 1} more" if len(runs) > 1 else ""
    with Progress(title, first.spec.options.progress) as progress, ExitStack() as held:
        cells: list[OpenCell | Exception] = []
        for prepared in runs:
            cell = OpenCell(store, prepared, progress)
            held.callback(cell.release)
            try:
                cell.open()
                cells.append(cell)
            except Exception as error:
                cells.append(error)
        running = [cell for cell in cells if isinstance(cell, OpenCell) and cell.run is not None]
        try:
            for ready, samples in _batches(first, running, progress) if running else ():
                run_batch([cell.run for cell in ready if cell.run is not None], samples)
        except Exception as error:  # building prompts, or what no row can hold
            for cell in running:
                cell.fail(error)
        for cell in running:
            cell.finish()
    return [cell if isinstance(cell, Exception) else (cell.error or cell.result) for cell in cells]


def _batches(
    first: PreparedRun, cells: list[OpenCell], progress: Progress
) -> Iterator[tuple[list[OpenCell], list[Sample]]]:
    """Batches of samples in order, each with the cells that miss just these samples."""
    total, size = first.num_samples, first.spec.engine.batch
    progress.total(None if total is None else total * len(cells))
    progress.detail("building prompts")
    pending: dict[OpenCell, list[Sample]] = {cell: [] for cell in cells}
    for sample in first.task.samples(first.prompt):
        for cell in cells:
            if cell.wants(sample):
                pending[cell].append(sample)
        yield from _take_ready(pending, size)
    yield from _take_ready(pending, 1)


def _take_ready(
    pending: dict[OpenCell, list[Sample]], size: int
) -> Iterator[tuple[list[OpenCell], list[Sample]]]:
    """Take out the batches of at least ``size`` samples, equal ones together."""
    together: dict[tuple[str, ...], list[OpenCell]] = defaultdict(list)
    for cell, samples in pending.items():
        if len(samples) >= size:
            together[tuple(sample.id for sample in samples)].append(cell)
    for cells in together.values():
        samples = pending[cells[0]]
        for cell in cells:
            pending[cell] = []
        yield cells, samples
