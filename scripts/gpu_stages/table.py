"""The table of targets from the stages' results: what was reached beside goal and physical limit.

Every ratio is of two rows of one run. What has no ``ok`` row on both sides is "not measured".
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

Rows = list[dict[str, Any]]
# regime, how it is computed, goal, stretch, limit (bytes over bandwidth, H200)
TARGETS: list[tuple[str, Callable[[Rows], float | None], str, str, str]] = [
    ("KV on GPU, 120K, batch 7: attention", lambda r: _attention(r, 7), "8x", "11.5x", "16.3x"),
    ("KV on GPU, 120K, batch 7: whole step", lambda r: _step(r, 7), "4x", "4.8x", "5.8x"),
    ("KV on GPU, 120K, batch 1: attention", lambda r: _attention(r, 1), "4x", "5.7x", "16.3x"),
    ("KV on GPU, 120K, batch 1: whole step", lambda r: _step(r, 1), "1.5x", "1.67x", "1.92x"),
    ("40 GiB cap, 120K, offloaded batch 6 over full batch 1, tokens/s",
     lambda r: _offloaded(r), "3x", "5x", "5.2x serial, 8.9x overlapped at hit ratio 0.9"),
    ("cache managed by the device over by the host, 120K, batch 1",
     lambda r: _managers(r, 1), "1.5x", "2.5x", ""),
    ("index build over prefill, 120K", lambda r: _build(r), "5%", "1.3%", "0.65%"),
]  # fmt: skip
CONTEXT = 120_000


def load(folder: Path) -> tuple[Rows, list[dict[str, Any]]]:
    """Rows of all stages in a folder, and the machines that they ran on (one, if all is well)."""
    rows, machines = [], []
    for path in sorted(folder.glob("gpu_*.json")):
        result = json.loads(path.read_text())
        rows += result["rows"]
        if result["machine"] not in machines:
            machines.append(result["machine"])
    return rows, machines


def markdown(rows: Rows, machines: list[dict[str, Any]]) -> str:
    """The table, and under it what it ran on."""
    lines = ["| regime | measured | goal | stretch | limit |", "|---|---|---|---|---|"]
    for regime, compute, *bounds in TARGETS:
        value = compute(rows)
        shown = "not measured" if value is None else f"{value:.2f}x"
        if value is not None and bounds[0].endswith("%"):
            shown = f"{100 * value:.2f}%"
        lines.append(f"| {regime} | {shown} | " + " | ".join(bounds) + " |")
    for machine in machines:
        keys = ("gpu", "driver_version", "cuda", "versions", "commit", "dirty")
        facts = {key: machine[key] for key in keys if machine.get(key) is not None}
        lines.append(f"\n`{json.dumps(facts)}`")
    if len(machines) > 1:
        lines.append("\nThe stages ran on different machines, versions or commits.")
    return "\n".join(lines) + "\n"


def _best(rows: Rows, case: str, key: str = "median_s", **facts: Any) -> float | None:
    """Smallest value among the good rows of a case."""
    found = [
        row[key]
        for row in rows
        if row["case"] == case
        and row["status"] == "ok"
        and all(row.get(name) == value for name, value in facts.items())
    ]
    return min(found, default=None)


def _ratio(above: float | None, below: float | None) -> float | None:
    return above / below if above is not None and below is not None else None


def _attention(rows: Rows, batch: int) -> float | None:
    where = {"batch": batch, "context": CONTEXT}
    full = _best(rows, "full_layer", **where)
    return _ratio(full, _best(rows, "retroinfer_layer", place="gpu", **where))


def _step(rows: Rows, batch: int) -> float | None:
    where = {"batch": batch, "context": CONTEXT, "cap_gib": None}
    full = _best(rows, "decode_step", method="full", **where)
    return _ratio(full, _best(rows, "decode_step", method="retroinfer", **where))


def _offloaded(rows: Rows) -> float | None:
    where = {"context": CONTEXT, "cap_gib": 40}
    full = _best(rows, "decode_step", "tokens_per_s", method="full", batch=1, **where)
    ours = _best(
        rows, "decode_step", "tokens_per_s", method="retroinfer_device_cache", batch=6, **where
    )
    return _ratio(ours, full)


def _managers(rows: Rows, batch: int) -> float | None:
    where = {"context": CONTEXT, "batch": batch}
    host = _best(rows, "decode_step", method="retroinfer_host_cache", **where)
    return _ratio(host, _best(rows, "decode_step", method="retroinfer_device_cache", **where))


def _build(rows: Rows) -> float | None:
    return _best(
        rows, "index_layer", "share_of_prefill_frac", context=CONTEXT, final_assign="global"
    )
