"""The preflight as a table: what a sweep would run, and what it needs against what is there."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from rich.console import Console

from retrobench.core.shapes import Footprint
from retrobench.core.words import counted, duration
from retrobench.report.tables.layout import print_line, print_table


@dataclass(slots=True, kw_only=True)
class PlannedRun:
    """One line of a plan: ``state`` is run, cached, quarantined or impossible."""

    label: str
    state: str
    key: str = ""
    todo: int | None = 0
    weight_bytes: int = 0
    footprint: Footprint = field(default_factory=Footprint)
    waiting: int = 0
    device: str = "cpu"
    seconds: float | None = None
    message: str = ""
    group: str = ""
    attended: str = ""
    ignored: str = ""


def print_planned(cells: Sequence[PlannedRun], free_bytes: int, console: Console) -> None:
    """One line per cell, then totals and each reason of a refusal once."""
    columns = ("cell", "key", "state", "samples", "weights", *_PLACES, "time")
    print_table(console, "plan", columns, map(_row, cells), left=columns[:3])
    counts = {state: sum(cell.state == state for cell in cells) for state in _STATES}
    parts = [f"{count} {state}" for state, count in counts.items() if count]
    console.print(
        f"{counted(len(cells), 'cell')}: {', '.join(parts)}; {_total(cells)}", highlight=False
    )
    places = [_places(cell) for cell in cells if cell.state == "run"]
    on_gpu, in_host = map(max, zip(*places, strict=True)) if places else (0, 0)
    sizes = [f"{_size(on_gpu)} on a GPU"] * bool(on_gpu)
    free = f" ({_size(free_bytes)} free)" if free_bytes else ""
    sizes += [f"{_size(in_host)} in host memory{free}"] * bool(in_host)
    if sizes:
        console.print(f"largest session with weights: {', '.join(sizes)}", highlight=False)
    refused: dict[str, list[str]] = {}
    for cell in cells:
        for note in filter(None, (cell.attended, cell.ignored)):
            print_line(console, f"note: {cell.label}: {note}")
        if cell.state == "impossible":
            refused.setdefault(cell.message, []).append(cell.label)
    for message, labels in refused.items():
        print_line(console, f"impossible: {', '.join(dict.fromkeys(labels))}: {message}")


def _row(cell: PlannedRun) -> tuple[str, ...]:
    place = cell.footprint
    sizes = (cell.weight_bytes, place.device, place.pinned, place.host, cell.waiting)
    todo = "?" if cell.todo is None else str(cell.todo)
    time = "" if cell.seconds is None else duration(cell.seconds)
    return (cell.label, cell.key[:6], cell.state, todo, *map(_size, sizes), time)


_PLACES = ("device", "pinned", "host", "prefill")  # the last: waits on the device meanwhile
_STATES = ("run", "cached", "quarantined", "impossible")


def _total(cells: Sequence[PlannedRun]) -> str:
    running = [cell for cell in cells if cell.state == "run"]
    if not running:
        return "nothing to run"
    known = [cell.seconds for cell in running if cell.seconds is not None]
    samples = sum(cell.todo or 0 for cell in running)
    text = counted(samples, "sample")
    if known:
        text += f", about {duration(sum(known))} by earlier rows"
    if len(known) < len(running):
        text += f", time unknown for {counted(len(running) - len(known), 'cell')} (no earlier rows)"
    return text


def _places(cell: PlannedRun) -> tuple[int, int]:
    """Bytes on a GPU and in host memory; on a CPU all is in host memory."""
    near = cell.weight_bytes + cell.waiting + cell.footprint.device
    far = cell.footprint.pinned + cell.footprint.host
    return (near, far) if cell.device.startswith("cuda") else (0, near + far)


def _size(num_bytes: int) -> str:
    if num_bytes < 2**20:
        return "0" if not num_bytes else f"{num_bytes / 2**10:.0f} KiB"
    if num_bytes < 2**30:
        return f"{num_bytes / 2**20:.0f} MiB"
    return f"{num_bytes / 2**30:.1f} GiB"
