"""Replacement and prefetch of RetroInfer's page cache on recorded decode steps of a model.

    python scripts/cache_study.py                 # the trained embedded model
    python scripts/cache_study.py --models llama31_8b --lengths 32768

The last tokens of RULER prompts are decoded with full attention and recorded, then replayed through
every variant of ``method.cache=host``: the pages asked for are the same for all. Hits are page
accesses, ``moved`` the bytes copied from the pool per step (misses and prefetches) as a share of
those that a step retrieves, ``best possible`` Belady's bound. Steps of overlapped and plain
admission are then timed in turn at one layer of Llama-3.1-8B's shape. Results go to
``results/published/cache_study.json`` with machine, versions and commit.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections import Counter
from pathlib import Path
from typing import Any

import torch
from cpu_speed import synthetic_run
from recorded_steps import PUBLISHED, Recording, record, replay

from retrobench.measure.clock import monotonic_s, utc_now
from retrobench.measure.machine import provenance
from retrobench.measure.probe import CountingProbe

OUT = PUBLISHED / "cache_study.json"
VARIANTS: dict[str, dict[str, Any]] = {
    "lru": {},
    "fifo": {"eviction": "fifo"},
    "lfu": {"eviction": "lfu"},
    "lru, prefetch 25%": {"prefetch_frac": 0.25},
    "lru, prefetch 100%": {"prefetch_frac": 1.0},
    "lru, twice the cache": {"cache_frac": 0.1},
}
TIMED: dict[str, dict[str, Any]] = {
    "plain": {},
    "overlap": {"overlap": True},
    "prefetch 25%": {"prefetch_frac": 0.25},
    "overlap, prefetch 25%": {"overlap": True, "prefetch_frac": 0.25},
}


def hits_and_bytes(recordings: list[Recording], options: dict[str, Any]) -> dict[str, float]:
    """Hit ratio, Belady's, and bytes moved per byte retrieved, over all layers."""
    total: Counter[str] = Counter()
    for recording in recordings:
        total.update(layer_totals(recording, {"cache": "host", "cache_bound": True, **options}))
    return {
        "hit_ratio": total["hits"] / total["asked"],
        "best": total["best"] / total["asked"],
        "moved_frac": total["moved"] / total["retrieved"],
    }


def layer_totals(recording: Recording, options: dict[str, Any]) -> dict[str, Any]:
    """Page accesses and bytes of one layer, over all steps."""
    probe, steady = CountingProbe(), []
    stats = replay(
        recording, options, probe, lambda method, *_: steady.extend(method.store.count[0])
    )
    asked = sum(probe.by_layer(name)[0] for name in ("hits", "misses"))
    steady_bytes = sum(steady) * recording.shape.kv_bytes_per_token
    return {
        "asked": asked,
        "hits": stats["hit_ratio"] * asked,
        "best": stats["best_hit_ratio"] * asked,
        "moved": probe.by_layer("h2d")[0],
        "retrieved": probe.by_layer("kv")[0] - steady_bytes,
    }


@torch.inference_mode()
def times(context: int, steps: int) -> dict[str, float]:
    """Median milliseconds of a step of each timed variant, steps taken in turn."""
    runs = {
        name: synthetic_run(
            {"name": "retroinfer", "cache": "host", **options}, context, steps, monotonic_s
        )
        for name, options in TIMED.items()
    }
    found: dict[str, list[float]] = {name: [] for name in runs}
    for step in range(3 + steps):
        for name, run in runs.items():
            found[name].append(run.step(step, compare=False))
    for run in runs.values():
        run.close()
    return {name: 1000 * statistics.median(seconds[3:]) for name, seconds in found.items()}


def main() -> None:
    """Run the study, print it and write it."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--models", nargs="*", default=["tiny"])
    parser.add_argument("--tasks", nargs="*", default=["niah_multikey_1", "niah_single_2", "cwe"])
    parser.add_argument("--lengths", type=int, nargs="*", default=[4096, 16384])
    parser.add_argument("--steps", type=int, default=64, help="decode steps replayed")
    parser.add_argument("--timed-context", type=int, default=32768, help="0: no timing")
    parser.add_argument("--out", type=Path, default=OUT)
    options = parser.parse_args()
    traces: dict[str, Any] = {}
    for model in options.models:
        for task in options.tasks:
            for length in options.lengths:
                recordings = record(model, task, length, options.steps)
                name = f"{model} {task} {length}"
                traces[name] = {
                    label: hits_and_bytes(recordings, o) for label, o in VARIANTS.items()
                }
                show(name, traces[name])
    result: dict[str, Any] = {"steps": options.steps, "variants": VARIANTS, "traces": traces}
    if options.timed_context:
        result["timed_context"] = options.timed_context
        result["ms_per_step"] = times(options.timed_context, 25)
        print(f"\nms per step at {options.timed_context}: {result['ms_per_step']}")
    result["provenance"] = {**provenance(), "time": utc_now()}
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(result, indent=1) + "\n")


def show(name: str, rows: dict[str, dict[str, float]]) -> None:
    """One table of the study."""
    print(f"\n{name}")
    for variant, row in rows.items():
        print(
            f"  {variant:24s} hits {row['hit_ratio']:.3f}  moved {row['moved_frac']:.3f}  "
            f"best possible {row['best']:.3f}",
            flush=True,
        )


if __name__ == "__main__":
    main()
