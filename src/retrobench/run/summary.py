"""What a run is, as plain values: enough to plan it, and to see that it is done, without torch."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Self

from retrobench.core.shapes import Footprint
from retrobench.measure.machine import NotEnoughMemory, require_room
from retrobench.report.tables.plan import PlannedRun
from retrobench.store.history import seconds_per_sample
from retrobench.store.results import ResultStore
from retrobench.store.row_file import ABSENT, MAX_ATTEMPTS


@dataclass(frozen=True, slots=True, kw_only=True)
class RunSummary:
    """A run whose cell is known.

    ``request`` tells what was asked of the cell (its samples); ``group`` is equal for runs that can
    share a prefill; ``refusal`` says why the run cannot work at all; ``match`` is set where a knob
    is still to be solved, so that the key is not final.
    """

    key: str
    label: str
    labels: dict[str, Any]
    request: str
    group: str
    num_samples: int | None
    lengths: tuple[int, ...]
    footprint: Footprint
    weight_bytes: int
    device: str
    mapped: bool  # over several devices
    waiting: int = 0  # bytes of the prompt that wait on the device while the method builds
    notes: tuple[str, ...] = ()
    refusal: str = ""
    match: str = ""
    ignored: str = ""  # what the run does not use of what was asked
    attended: str = ""  # where the plan knows that it is not what the budget asks for
    asked: str = ""  # hash of all options, also of those that do not decide the cell

    def plain(self) -> dict[str, Any]:
        """JSON-ready values."""
        return asdict(self)

    @classmethod
    def read(cls, values: Mapping[str, Any]) -> Self:
        """From ``plain``."""
        made = {"footprint": Footprint(**values["footprint"])}
        made |= {name: tuple(values[name]) for name in ("lengths", "notes")}
        return cls(**{**values, **made})


def plan_run(summary: RunSummary, store: ResultStore, retry: bool) -> PlannedRun:
    """What the run would do, given what is on disk and how much memory is free."""
    entry = PlannedRun(
        label=summary.label,
        state="run",
        key=summary.key,
        weight_bytes=summary.weight_bytes,
        footprint=summary.footprint,
        waiting=summary.waiting,
        device=summary.device,
        message=summary.refusal,
        group=summary.group,
        attended=summary.attended,
        ignored=summary.ignored,
    )
    if not entry.message:
        try:
            check_memory(summary, summary.footprint, weights=True)
        except NotEnoughMemory as error:
            entry.message = str(error)
    if entry.message:
        entry.state = "impossible"
    if summary.match:  # the knob, and with it the key, are known once it is solved
        entry.key, entry.todo = "", summary.num_samples
        entry.label = f"{entry.label} {summary.match}"
        return entry
    total = summary.num_samples
    settled = len(store.read(entry.key).settled())
    entry.todo = None if total is None else max(0, total - settled)
    if is_done(summary, store):
        entry.state, entry.todo, entry.message = "cached", 0, ""
    elif entry.state == "run" and is_quarantined(summary, store) and not retry:
        entry.state = "quarantined"
    if entry.state == "run" and entry.todo is not None:
        per_sample = _seconds(summary, store)
        entry.seconds = None if per_sample is None else per_sample * entry.todo
    return entry


@dataclass(slots=True)
class CellResult:
    """What became of one cell."""

    key: str
    labels: dict[str, Any]
    ran: int = 0
    cached: int = 0
    failed: dict[str, int] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    message: str = ""  # why the cell as a whole failed, or the first sample that did
    matched: str = ""  # how its knob was solved, if it was
    ignored: str = ""  # what the run does not use of what was asked

    @classmethod
    def of(cls, summary: RunSummary, matched: str = "") -> Self:
        """Of a cell of which nothing has run yet."""
        about = {"notes": summary.notes, "ignored": summary.ignored}
        return cls(summary.key, summary.labels, matched=matched, **about)

    @property
    def state(self) -> str:
        """``done``, or ``failed`` if any sample failed."""
        return "failed" if self.failed else "done"

    def plain(self) -> dict[str, Any]:
        """JSON-ready values; a label in place of the labels."""
        values = asdict(self)
        labels = values.pop("labels")
        label = " ".join(str(labels[name]) for name in ("model", "method", "benchmark"))
        return {**values, "label": label, "notes": list(self.notes)}


def settled(summary: RunSummary, store: ResultStore, retry: bool) -> CellResult | None:
    """The result of a cell that needs no run: done, or quarantined; None for another one."""
    result = CellResult.of(summary)
    if summary.match:
        return None
    if is_done(summary, store):
        rows = store.read(summary.key).rows
        if not retry or not any(row["status"] == ABSENT for row in rows.values()):
            result.cached = len(rows)
            return result
    if is_quarantined(summary, store) and not retry:
        result.failed = {"quarantined": 1}
        message = store.status(summary.key).get("message", "")
        result.message = f"failed {MAX_ATTEMPTS} times, retry=true tries again: {message}"
        return result
    return None


def is_done(summary: RunSummary, store: ResultStore) -> bool:
    """Whether everything that the run asks for is on disk, as it was written."""
    status = store.status(summary.key)
    if status["state"] != "done" or summary.request not in status.get("requests", []):
        return False
    intact = store.is_intact(summary.key)
    if intact is not None or summary.num_samples is None:
        return bool(intact)
    known = store.read(summary.key)  # of an older version: count
    return not known.damaged and len(known.settled()) >= summary.num_samples


def is_quarantined(summary: RunSummary, store: ResultStore) -> bool:
    """Whether the cell as a whole failed too often to be tried again unasked.

    Failures under other options that share its key (a device, a cache) do not count.
    """
    return attempts(store.status(summary.key), summary.asked) >= MAX_ATTEMPTS


def attempts(status: Mapping[str, Any], asked: str) -> int:
    """How often the cell as a whole failed with just these options."""
    return status.get("attempts", 0) if status.get("attempts_of", asked) == asked else 0


def check_memory(
    summary: RunSummary, need: Footprint, *, weights: bool, waiting: bool = True
) -> None:
    """NotEnoughMemory if the cache (and weights that are not loaded) is more than is free.

    ``waiting``: the prompt that waits for the method counts, too (not where ``need`` has it).
    """
    more = summary.weight_bytes * weights + summary.waiting * waiting
    what = f"the KV cache of method={summary.labels['method']} with its model"
    fix = "a smaller task.length or engine.batch"
    need = need + Footprint(device=more)
    require_room(need, summary.device, what, fix, mapped=summary.mapped)


def _seconds(summary: RunSummary, store: ResultStore) -> float | None:
    """Mean over lengths of the median of earlier rows; None where there are none.

    Rows of the same model and method count; without any, those of the same model. A length that
    was never run is scaled from the nearest one by its number of tokens.
    """
    times = seconds_per_sample(store)
    model = summary.labels["model"]
    own = times.get((model, summary.labels["method"])) or times.get((model, ""))
    if not own:
        return None
    found = []
    for length in summary.lengths or (max(own),):
        nearest = min(own, key=lambda known: abs(known - length))
        found.append(own[nearest] * (length / nearest if nearest else 1))
    return sum(found) / len(found)
