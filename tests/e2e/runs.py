"""Runs on the constructed model: as jobs of this process, or as sweeps of another."""

from __future__ import annotations

import collections
import json
from pathlib import Path

from retrobench.cli import app as cli
from retrobench.store.results import ResultStore
from tests.e2e.forks import ROOT as ROOT
from tests.e2e.forks import Command

SMALL = ["task.tasks=[niah_single_2]", "task.length=1200", "task.samples=2", "model=constructed"]
MEASURED = {"time", "peak_bytes", "prefill_shared_by"}  # of a row, beside what ends in _s


def start(results, *arguments):
    return Command("run.py", "-m", *SMALL, f"results_dir={results}", *arguments)


def rows_of(results):
    """How often each sample was written, by cell."""
    counts = collections.Counter()
    for path in Path(results).glob("*/rows.jsonl"):
        for line in path.read_text().splitlines():
            counts[path.parent.name, json.loads(line)["sample"]] += 1
    return counts


def config(results, **changes):
    """One composed configuration; where it names no data, there is none."""
    raw = {
        "model": {"name": "constructed", "source": "constructed"},
        "method": {"name": "retroinfer"},
        "task": {"name": "ruler", "tasks": ["niah_single_2"], "length": 1200, "samples": 2},
        "results_dir": str(results),
        "progress": False,
        "data": {"root": "no-such-folder"},
    }
    return {**raw, **changes}


def sweep(results, methods, **changes):
    """Cells that differ in their method, run as one sweep's unit."""
    raws = [config(results, method=method, **changes) for method in methods]
    return cli.run_jobs(raws)


def comparable(results, key):
    rows = ResultStore(results).read(key).rows
    for row in rows.values():
        for name in [name for name in row if name.endswith("_s") or name in MEASURED]:
            row.pop(name)
        row["live"].pop("span_s")
        row["method_stats"].pop("backend_ms", None)
    return rows
