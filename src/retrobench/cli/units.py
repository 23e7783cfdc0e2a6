"""Units of a sweep: jobs whose cells share a prefill run in one process, led by the first of them.

Hydra launches one job per cell, with any launcher. Before the first starts, a list of units with
their composed configurations is written to the sweep's folder. The leader runs all cells of its
unit; the other jobs of the unit end at once.
"""

import json
import os
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from retrobench.core.secrets import redact
from retrobench.store.sweeps import CELLS_FILE

UNITS_FILE = "units.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class Unit:
    """Job numbers, the leader first, and what each of them was asked for."""

    jobs: tuple[int, ...]
    overrides: tuple[str, ...]
    configs: tuple[Any, ...]


def write(
    folder: Path, groups: Sequence[str], overrides: Sequence[str], configs: Sequence[Any], jobs: int
) -> None:
    """Keep the units of a sweep. ``groups`` names what each job can share a prefill with.

    ``jobs`` processes will work at once: large units are split until each has one.
    """
    together: dict[str, list[int]] = defaultdict(list)
    for number, group in enumerate(groups):
        together[group or f"alone {number}"].append(number)
    parts = split(list(together.values()), jobs)
    units = [
        Unit(
            jobs=tuple(part),
            overrides=tuple(overrides[number] for number in part),
            configs=tuple(configs[number] for number in part),
        )
        for part in parts
    ]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / UNITS_FILE).write_text(json.dumps(list(map(asdict, units))), encoding="utf-8")


def split(parts: list[list[int]], jobs: int) -> list[list[int]]:
    """Halve the largest parts until there are as many as ``jobs``, or all are single."""
    parts = list(parts)
    while len(parts) < jobs and max(map(len, parts), default=1) > 1:
        largest = max(parts, key=len)
        parts.remove(largest)
        middle = (len(largest) + 1) // 2
        parts += [largest[:middle], largest[middle:]]
    return parts


def find(folder: Path, number: int) -> Unit | None:
    """The unit of a job; None if the sweep has none."""
    try:
        entries = json.loads((folder / UNITS_FILE).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    for entry in entries:
        if number in entry["jobs"]:
            return Unit(**{name: tuple(value) for name, value in entry.items()})
    return None


def parallel_jobs(config: DictConfig) -> int:
    """Processes of the launcher that share this machine (one for those that do not say)."""
    count = config.hydra.launcher.get("n_jobs") or 1
    return (os.cpu_count() or 1) if count < 0 else int(count)


def note(folder: Path, entry: dict[str, Any]) -> None:
    """Append an entry to the sweep's list; lines are short, so appends of workers do not mix."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / CELLS_FILE).open("a", encoding="utf-8") as stream:
        stream.write(redact(json.dumps(entry)) + "\n")
