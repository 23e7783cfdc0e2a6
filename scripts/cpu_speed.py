"""Measure decode attention on this CPU: ``OMP_NUM_THREADS=1 python scripts/cpu_speed.py``.

One layer of Llama-3.1-8B's shape on synthetic keys and values, default budgets. All methods live in
one process and take their steps in turn, so that whatever else the machine does meets all of them.
The timed steps count nothing; bytes are counted in a few steps after them.
With one thread the clock is the processor time of this process (on a shared machine the time that
others had the core does not count; shared caches and memory still do), with more it is wall time.
Writes ``results/published/cpu_speed.json`` with hardware, versions and commit.
"""

import argparse
import json
import os
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from retrobench.core.paths import check_output
from retrobench.core.registry import method_class
from retrobench.core.spec import parse
from retrobench.evaluate.speed import count_steps, summary
from retrobench.evaluate.synthetic import SpeedRun, SyntheticRun
from retrobench.measure.ceilings import read
from retrobench.measure.clock import utc_now
from retrobench.measure.machine import provenance
from retrobench.measure.probe import CountingProbe
from retrobench.tasks.speed import SpeedConfig

METHODS: dict[str, dict[str, Any]] = {
    "full, torch SDPA (group folded)": {"name": "full", "backend": "sdpa"},
    "full, own kernel": {"name": "full", "backend": "cpu"},
    "quest": {"name": "quest"},
    "retroinfer": {"name": "retroinfer"},
}


def synthetic_run(
    options: dict[str, Any], context: int, steps: int, clock: Callable[[], float]
) -> SyntheticRun:
    """A method with its prompt, ready for timed steps; nothing is counted yet."""
    method = method_class(options["name"])
    own = {name: value for name, value in options.items() if name != "name"}
    run = SpeedRun(
        config=SpeedConfig(context=(context,), steps=steps),
        method_class=method,
        method_config=parse(method.Config, own, "method"),
        budget=None,
        device="cpu",
    )
    prepared = SyntheticRun(run, context, 1, CountingProbe(counting=False))
    prepared.clock = clock
    prepared.prepare(lambda text: print(f"{options['name']}: {text}", flush=True))
    return prepared


def clock() -> float:
    """Seconds: see the top of this file."""
    return time.process_time() if torch.get_num_threads() == 1 else time.perf_counter()


def read_gb_s(data: torch.Tensor) -> float:
    """Rate of reading memory once, by the same clock."""
    start = clock()
    read(data)
    return data.nbytes / (clock() - start) / 1e9


def measure(context: int, steps: int) -> dict[str, Any]:
    """Every method at one context, interleaved step by step."""
    rows: dict[str, Any] = {}
    probe_data, ceilings = torch.ones(64 * 2**20), []
    with torch.inference_mode():
        runs = {
            label: synthetic_run(method, context, steps, clock) for label, method in METHODS.items()
        }
        config = next(iter(runs.values())).config
        for step in range(config.warmup + steps):
            ceilings.append(read_gb_s(probe_data))
            for run in runs.values():
                compare = 0 <= step - config.warmup < config.error_steps
                seconds = run.step(step, compare)
                if step >= config.warmup:
                    run.timed.step_s.append(seconds)
        counts = {label: count_steps(run, run.probe, config) for label, run in runs.items()}
    for label, run in runs.items():
        found = summary(run.timed, counts[label], 1, statistics.median(ceilings))
        found.pop("span_ms")  # wall time
        held = run.method.allocated().total
        rows[label] = {**found, "seal_s": run.timed.build_s, "held_bytes": held}
        rows[label]["stats"] = dict(run.method.stats())
        run.close()
    baselines = list(rows.values())[:2]
    for label, row in rows.items():
        for name, full in zip(("vs_sdpa", "vs_own_full"), baselines, strict=True):
            row[name] = full["step_s"] / row["step_s"]
            row[f"{name}_min"] = full["step_min_s"] / row["step_min_s"]
        ratios = f"{row['vs_sdpa']:6.1f}x {row['vs_own_full']:5.1f}x"
        print(f"{context}: {1000 * row['step_s']:8.2f} ms {ratios} {label}", flush=True)
    return rows


def main() -> None:
    """All contexts."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--context", type=int, nargs="+", default=[32768, 131072])
    parser.add_argument("--steps", type=int, default=15)
    parser.add_argument("--out", type=Path, default=Path("results/published/cpu_speed.json"))
    options = parser.parse_args()
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")  # large pages, as run.py asks for
    try:
        check_output("--out", options.out)
    except ValueError as error:
        parser.error(str(error))
    result = {
        "command": f"OMP_NUM_THREADS={torch.get_num_threads()} python scripts/cpu_speed.py "
        f"--context {' '.join(map(str, options.context))} --steps {options.steps}",
        "clock": "processor time" if torch.get_num_threads() == 1 else "wall",
        "shape": "Llama-3.1-8B, one layer, bfloat16, batch 1",
        "load_average_before": os.getloadavg(),
        "provenance": {**provenance(), "time": utc_now()},
        "contexts": {str(context): measure(context, options.steps) for context in options.context},
        "load_average_after": os.getloadavg(),
    }
    options.out.write_text(json.dumps(result, indent=1, allow_nan=False) + "\n")


if __name__ == "__main__":
    main()
