"""Runs cells prompt by prompt: one prefill serves every cell that starts from the same prompts.

Cells that share model, task, protocol and prefill form a group. Each keeps its own lock, rows,
status and tracker; one that fails never stops the others.
"""

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from typing import Any, Self

from retrobench.core.task import Sample
from retrobench.run import matching, plan, plan_cache
from retrobench.run.batch import run_batch
from retrobench.run.cell import OpenCell
from retrobench.run.context import RunContext
from retrobench.run.plan import PreparedRun
from retrobench.run.progress import Progress
from retrobench.run.spec import parse_run
from retrobench.run.summary import CellResult, settled
from retrobench.store.results import ResultStore

CellOutcome = CellResult | Exception


def run_cells(raws: Sequence[Mapping[str, Any]]) -> list[CellOutcome]:
    """Run composed configurations, in groups that share a prefill; the outcome of each, in order.

    An error is a ValueError for what the user must change. Failures of single samples become rows
    and the cell goes on; a failure of the cell as a whole becomes its status.
    """
    outcomes: dict[int, CellOutcome] = {}
    groups: dict[tuple[str, str], list[tuple[int, PreparedRun]]] = defaultdict(list)
    for number, raw in enumerate(raws):
        try:
            prepared, found = _prepare(raw)
        except Exception as error:
            outcomes[number] = error
            continue
        if found is not None:
            outcomes[number] = found
        else:
            where = prepared.spec.options.results_dir
            groups[where, prepared.summary.group].append((number, prepared))
    for members in groups.values():
        together = plan.can_share([prepared for _, prepared in members])
        for part in [members] if together else [[member] for member in members]:
            with Group([prepared for _, prepared in part]) as group:
                for cells, samples in group.batches():
                    run_batch(cells, samples)
            outcomes |= {n: cell for (n, _), cell in zip(part, group.outcomes(), strict=True)}
    return [outcomes[number] for number in range(len(raws))]


def _prepare(raw: Mapping[str, Any]) -> tuple[PreparedRun, CellResult | None]:
    """A run with its knob solved, and its result if nothing is to run."""
    spec, matched = parse_run(raw), ""
    if spec.match is not None:
        reference = matching.reference_config(spec, raw)
        if reference is None:
            key = ResultStore(spec.options.results_dir).find(str(spec.reference))
        else:
            (outcome,) = run_cells([reference])
            if isinstance(outcome, Exception):
                raise outcome
            key = outcome.key
        raw, matched = matching.solve(spec, raw, key)
        spec = parse_run(raw)
    store = ResultStore(spec.options.results_dir)
    store.prepare()
    prepared = plan.prepare(spec)
    prepared.matched = matched
    plan_cache.keep(raw, prepared.summary)
    found = settled(prepared.summary, store, spec.options.retry)
    if found is not None:
        found.matched = matched
    return prepared, found


class Group:
    """Cells of one group while they run: entering opens them, leaving writes how they ended."""

    def __init__(self, runs: Sequence[PreparedRun]) -> None:
        first = self.first = runs[0]
        store = ResultStore(first.spec.options.results_dir)
        title = f"{first.spec.method} {first.spec.task}"
        title += f" and {len(runs) - 1} more" if len(runs) > 1 else ""
        self.progress = Progress(title, first.spec.options.progress)
        self.cells = [OpenCell(store, prepared, self.progress) for prepared in runs]

    def __enter__(self) -> Self:
        with ExitStack() as held:
            held.enter_context(self.progress)
            for cell in self.cells:
                held.callback(cell.release)
                cell.open()
            self._held = held.pop_all()
        return self

    def __exit__(self, _: object, error: BaseException | None, __: object) -> bool:
        with self._held:
            for cell in self.cells:
                if error is None:
                    cell.finish()
                elif isinstance(error, Exception):  # building prompts, or what no row can hold
                    cell.fail(error)
        return isinstance(error, Exception)

    def outcomes(self) -> list[CellOutcome]:
        """What became of each cell."""
        return [cell.error or cell.result for cell in self.cells]

    def batches(self) -> Iterator[tuple[list[RunContext], list[Sample]]]:
        """Batches of samples in order, each with the cells that miss just these samples."""
        running = [cell for cell in self.cells if cell.run is not None]
        if not running:
            return
        total, size = self.first.summary.num_samples, self.first.spec.engine.batch
        self.progress.total(None if total is None else total * len(running))
        self.progress.detail("building prompts")
        pending: dict[OpenCell, list[Sample]] = {cell: [] for cell in running}
        for sample in self.first.task.samples(self.first.prompt):
            for cell in running:
                if cell.wants(sample):
                    pending[cell].append(sample)
            yield from _take_ready(pending, size)
        yield from _take_ready(pending, 1)


def _take_ready(
    pending: dict[OpenCell, list[Sample]], size: int
) -> Iterator[tuple[list[RunContext], list[Sample]]]:
    """Take out the batches of at least ``size`` samples, equal ones together."""
    together: dict[tuple[str, ...], list[OpenCell]] = defaultdict(list)
    for cell, samples in pending.items():
        if len(samples) >= size:
            together[tuple(sample.id for sample in samples)].append(cell)
    for cells in together.values():
        samples = pending[cells[0]]
        for cell in cells:
            pending[cell] = []
        yield [cell.run for cell in cells if cell.run is not None], samples
