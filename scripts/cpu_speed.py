"""Measure decode attention on this CPU: ``OMP_NUM_THREADS=1 python scripts/cpu_speed.py``.

One layer of Llama-3.1-8B's shape on injected keys and values, default budgets. All methods live in
one process and take their steps in turn, so that whatever else the machine does meets all of them.
Writes ``results/published/cpu_speed.json`` with hardware, versions and commit.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
from pathlib import Path
from typing import Any

import torch

from retrobench.core.registry import method_class
from retrobench.measure.ceilings import read_gb_s
from retrobench.measure.clock import utc_now
from retrobench.measure.machine import provenance
from retrobench.measure.probe import CountingProbe
from retrobench.runspec import RunSpec, parse_run
from retrobench.speed import Injected, summary

METHODS: dict[str, dict[str, Any]] = {
    "full, torch SDPA (group folded)": {"name": "full", "backend": "sdpa"},
    "full, own kernel": {"name": "full", "backend": "cpu"},
    "quest": {"name": "quest"},
    "retroinfer": {"name": "retroinfer"},
}


def specification(method: dict[str, Any], context: int, steps: int) -> RunSpec:
    """The run of one method."""
    task = {"name": "speed", "context": [context], "steps": steps}
    model = {"name": "constructed", "source": "constructed"}
    return parse_run({"method": method, "task": task, "model": model})


def measure(context: int, steps: int) -> dict[str, Any]:
    """Every method at one context, interleaved step by step."""
    runs: dict[str, tuple[Injected, CountingProbe]] = {}
    rows: dict[str, Any] = {}
    ceilings = [read_gb_s("cpu")]
    with torch.inference_mode():
        for label, method in METHODS.items():
            spec, probe = specification(method, context, steps), CountingProbe(spans=True)
            run = Injected(spec, method_class(spec.method), context, 1, probe, "cpu")
            print(f"{context}: {label}: build")
            run.prepare(lambda text: None)
            runs[label] = run, probe
        config = next(iter(runs.values()))[0].config
        for step in range(config.warmup + steps):
            ceilings.append(read_gb_s("cpu", repeats=2))
            for run, probe in runs.values():
                if step == config.warmup:
                    probe.reset()
                compare = 0 <= step - config.warmup < config.error_steps
                seconds = run.step(step, compare)
                if step >= config.warmup:
                    run.timed.step_s.append(seconds)
    ceiling = statistics.median(ceilings)
    for label, (run, probe) in runs.items():
        found = summary(run.timed, probe.row(), 1, ceiling)
        held = run.method.allocated().total
        rows[label] = {**found, "seal_s": run.timed.seal_s, "held_bytes": held}
        rows[label]["stats"] = dict(run.method.stats())
        run.close()
    for row in rows.values():
        for name, baseline in zip(("vs_sdpa", "vs_own_full"), list(rows)[:2], strict=True):
            row[name] = rows[baseline]["step_s"] / row["step_s"]
            row[f"{name}_min"] = rows[baseline]["step_min_s"] / row["step_min_s"]
        print(
            f"{context}: {1000 * row['step_s']:8.2f} ms {row['vs_sdpa']:6.1f}x {row['vs_own_full']:5.1f}x"
        )
    return rows


def main() -> None:
    """All contexts."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--context", type=int, nargs="+", default=[32768, 131072])
    parser.add_argument("--steps", type=int, default=15)
    parser.add_argument("--out", type=Path, default=Path("results/published/cpu_speed.json"))
    options = parser.parse_args()
    result = {
        "command": f"OMP_NUM_THREADS={torch.get_num_threads()} python scripts/cpu_speed.py",
        "shape": "Llama-3.1-8B, one layer, bfloat16, batch 1",
        "load_average_before": os.getloadavg(),
        "provenance": {**provenance(), "time": utc_now()},
        "contexts": {str(context): measure(context, options.steps) for context in options.context},
        "load_average_after": os.getloadavg(),
    }
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(result, indent=1, allow_nan=False) + "\n")


if __name__ == "__main__":
    main()
