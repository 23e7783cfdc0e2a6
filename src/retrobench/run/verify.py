"""Parity receipts: samples of a finished cell run again and compared with what is on disk."""

import json
import random
from collections.abc import Mapping
from typing import Any

from retrobench.core.code import code_fingerprint
from retrobench.measure.clock import utc_now
from retrobench.measure.machine import commit
from retrobench.run import plan
from retrobench.run.batch import run_batch
from retrobench.run.context import RunContext
from retrobench.run.progress import Progress
from retrobench.run.spec import parse_run
from retrobench.run.summary import CellResult
from retrobench.store.results import ResultStore
from retrobench.store.row_file import OK, RowWriter
from retrobench.track.base import NullTracker

FILE = "verify.json"
_COUNTED = ("attended_tokens", "estimated_tokens", "bytes_per_step")


class _Kept(RowWriter):
    """Keeps rows in memory."""

    def __init__(self) -> None:
        self.rows: list[dict[str, Any]] = []

    def append(self, row: Mapping[str, Any]) -> None:
        self.rows.append(dict(row))


def verify(store: ResultStore, key: str, count: int, seed: int = 0) -> dict[str, Any]:
    """Run ``count`` answered samples of a cell again, one at a time; the receipt, also on disk.

    The samples are drawn at random by ``seed``. ``problems``: what is wrong with the cell's files.

    ``verdict``: ``identical`` (prompts, answers and what was attended), ``answers equal``,
    ``scores equal`` or ``unstable``. Cells of a batch are compared with batch 1.
    """
    if count < 1:
        raise ValueError(f"--samples {count}: run at least 1 sample again")
    about = store.cell(key)
    if "asked" not in about:
        raise ValueError(f"{key} was written without its configuration; run it again first")
    spec = parse_run({**about["asked"], "results_dir": str(store.root), "progress": False})
    prepared = plan.prepare(spec)
    if prepared.cell.key != key:
        changes = "; ".join(prepared.cell.why(about["cell"]))
        raise ValueError(f"{key} cannot be run again as it was: {changes}")
    answered = {s: row for s, row in store.read(key).rows.items() if row["status"] == OK}
    if not answered:
        raise ValueError(f"{key} has no answered sample to verify")
    wanted = set(random.Random(seed).sample(sorted(answered), min(count, len(answered))))
    old = {sample: answered[sample] for sample in wanted}
    differences = [line for row in _again(prepared, wanted) for line in _compare(old, row)]
    receipt = {
        "verdict": _verdict(differences),
        "samples": sorted(wanted),
        "seed": seed,
        "problems": store.problems([key]),
        "differences": [f"{sample}: {field}" for sample, field in differences],
        "code": code_fingerprint(spec.method),
        "same_code": {row.get("code") for row in old.values()} == {code_fingerprint(spec.method)},
        "commit": commit()["commit"],
        "time": utc_now(),
    }
    store.keep(key, FILE, json.dumps(receipt, indent=1))
    return receipt


def _again(prepared: plan.PreparedRun, wanted: set[str]) -> list[dict[str, Any]]:
    kept = _Kept()
    with Progress(f"verify {prepared.summary.label}", False) as progress:
        result = CellResult.of(prepared.summary)
        run = RunContext(prepared, kept, NullTracker(), progress, result)
        for sample in prepared.task.samples(prepared.prompt):
            if sample.id in wanted:
                run_batch([run], [sample])
            if len(kept.rows) == len(wanted):
                break
    return kept.rows


def _compare(old: Mapping[str, Mapping[str, Any]], row: Mapping[str, Any]) -> list[tuple[str, str]]:
    before, found = old[row["sample"]], []
    for name in ("status", "prompt_hash", "prediction", "score"):
        if before.get(name) != row.get(name):
            found.append((row["sample"], name))
    for name in _COUNTED:
        if before.get("live", {}).get(name) != row.get("live", {}).get(name):
            found.append((row["sample"], name))
    return found


def _verdict(differences: list[tuple[str, str]]) -> str:
    fields = {field for _, field in differences}
    if not fields:
        return "identical"
    if not fields & {"status", "prompt_hash", "prediction", "score"}:
        return "answers equal"
    return "scores equal" if not fields & {"status", "prompt_hash", "score"} else "unstable"
