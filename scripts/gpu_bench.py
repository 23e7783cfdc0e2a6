"""GPU benchmark in stages of less than ten minutes, each unattended: see docs/gpu.md.

    python scripts/gpu_bench.py ceilings kernels      # some stages
    python scripts/gpu_bench.py all                   # all of them, one process each
    python scripts/gpu_bench.py table                 # targets from the results that are there
    python scripts/gpu_bench.py all --smoke --out DIR # plumbing only, tiny shapes, any machine

Every stage writes ``gpu_<stage>.json``: rows, machine, driver, versions, commit.
"""

from __future__ import annotations

import argparse
import importlib
import json
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import torch
from gpu_stages import table
from gpu_stages.common import Bench

from retrobench.measure.clock import utc_now
from retrobench.measure.machine import provenance

STAGES = ("ceilings", "kernels", "baselines", "layers", "decode", "index_build")
PUBLISHED = Path(__file__).parents[1] / "results" / "published"


def main() -> int:
    """Run the stages asked for; 1 if a case failed (not: absent, out of memory, out of time)."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("stages", nargs="+", choices=(*STAGES, "all", "table"), metavar="STAGE",
                        help=f"all, or some of {', '.join(STAGES)}")  # fmt: skip
    parser.add_argument("--smoke", action="store_true", help="tiny shapes; CPU without a GPU")
    parser.add_argument(
        "--out", type=Path, help="folder of the results (default: results/published)"
    )
    options = parser.parse_args()
    out = options.out or PUBLISHED
    if options.stages == ["table"]:
        print(_table(out), end="")
        return 0
    device = "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cpu" and not options.smoke:
        parser.error("no CUDA device; --smoke tries the plumbing on the CPU")
    if options.smoke and options.out is None:
        parser.error("--smoke needs --out: its numbers mean nothing and are not published")
    chosen = STAGES if "all" in options.stages else dict.fromkeys(options.stages)
    stages = [stage for stage in chosen if stage != "table"]
    if len(stages) > 1 or "table" in chosen:
        failed = max(_alone(stage, options) for stage in stages)
        print(_table(out), end="")
        return failed
    return _run(stages[0], device, options.smoke, out)


def _alone(stage: str, options: argparse.Namespace) -> int:
    """A stage in its own process: a fault or a full device costs that stage only."""
    command = [sys.executable, __file__, stage]
    command += ["--smoke"] * options.smoke + (["--out", str(options.out)] if options.out else [])
    return subprocess.run(command).returncode


def _run(stage: str, device: str, smoke: bool, out: Path) -> int:
    bench = Bench(device, smoke)
    module = importlib.import_module(f"gpu_stages.{stage}")
    try:
        module.run(bench)
    finally:
        result = {
            "stage": stage,
            "smoke": smoke,
            "time": utc_now(),
            "machine": {**provenance(), **_gpu(device)},
            "rows": bench.rows,
        }
        out.mkdir(parents=True, exist_ok=True)
        path = out / f"gpu_{stage}.json"
        path.write_text(json.dumps(result, indent=1) + "\n")
    for row in bench.rows:
        print(json.dumps(row))
    count = Counter(row["status"] for row in bench.rows)
    print(f"{path}: " + ", ".join(f"{n} {status}" for status, n in count.items()))
    return 1 if count["error"] or count["parity"] or not count["ok"] else 0


def _table(out: Path) -> str:
    """Write the targets beside the results."""
    out.mkdir(parents=True, exist_ok=True)
    text = table.markdown(*table.load(out))
    (out / "gpu_targets.md").write_text(text)
    return text


def _gpu(device: str) -> dict[str, Any]:
    """Driver, power and clocks as nvidia-smi tells them, and what torch sees."""
    if device != "cuda":
        return {}
    facts: dict[str, Any] = {}
    fields = "driver_version,pstate,clocks.max.sm,clocks.max.memory,power.limit,pcie.link.gen.max"
    if shutil.which("nvidia-smi"):
        command = ["nvidia-smi", f"--query-gpu={fields}", "--format=csv,noheader"]
        told = subprocess.run(command, capture_output=True, text=True).stdout.splitlines()
        if told:
            values = (value.strip() for value in told[0].split(","))
            facts.update(zip(fields.split(","), values, strict=False))
    properties = torch.cuda.get_device_properties(0)
    return {
        **facts,
        "cuda": torch.version.cuda,
        "device_bytes": properties.total_memory,
        "multiprocessors": properties.multi_processor_count,
    }


if __name__ == "__main__":
    sys.exit(main())
