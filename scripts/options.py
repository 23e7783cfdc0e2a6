"""Write docs/options.md from the dataclasses that hold the options."""

import argparse
import sys
from pathlib import Path

from retrobench.core.registry import method_class, method_names
from retrobench.core.spec import table
from retrobench.engine.loader import ModelConfig
from retrobench.run.spec import EngineConfig, MeasureConfig, PrefillConfig, ProtocolConfig
from retrobench.serving.hardware import KINDS, MEASURED, MeasuredConfig
from retrobench.tasks import task_class, task_names
from retrobench.track.wandb import WandbConfig

DOC = Path(__file__).resolve().parent.parent / "docs" / "options.md"
TOP = """# Options

Write an option as `NAME=VALUE` after `run.py`. This page is made by `make options` from the
dataclasses that parse the configuration.

## Top level

| option | default | allowed | meaning |
|---|---|---|---|
| `budget` |  | `2%` \\| `1024tok` \\| `64MiB` \\| `top_p:0.95` | what a KV head attends exactly |
| `match` |  | tokens \\| pcie \\| hbm \\| gpu_memory | find the budget or cache of equal cost |
| `reference` |  | KEY \\| `METHOD@BUDGET` | of `match`: the cell whose cost is to be reached |
| `method_options` | `{}` | `{METHOD: {OPTION: VALUE}}` | options of one method in a sweep |
| `results_dir` | `results/runs` |  | folder of the rows |
| `data.root` | `data` |  | folder of data files |
| `dry_run` | `false` |  | print the plan, run nothing |
| `retry` | `false` |  | run quarantined samples once more |
| `progress` | `true` |  | show progress bars |
| `sweep` |  |  | name of a sweep; else made from the command line |"""


def render() -> str:
    """The whole page."""
    sections = [("Model", ModelConfig, "model"), ("Engine", EngineConfig, "engine")]
    sections += [("Prefill", PrefillConfig, "prefill"), ("Protocol", ProtocolConfig, "protocol")]
    sections += [("Measure", MeasureConfig, "measure"), ("tracker=wandb", WandbConfig, "tracker")]
    sections += [(f"method={m}", method_class(m).Config, "method") for m in method_names()]
    sections += [(f"hardware of kind {k}", c.Config, "hardware") for k, c in KINDS.items()]
    sections += [(f"hardware={MEASURED}", MeasuredConfig, "hardware")]
    sections += [(f"task={t}", task_class(t).Config, "task") for t in task_names()]
    parts = [TOP]
    for title, cls, where in sections:
        rows = table(cls, where)
        parts.append(f"\n## {title}\n")
        if not rows:
            parts.append("No options.\n")
            continue
        parts.append("| option | default | allowed | meaning |\n|---|---|---|---|")
        escaped = [[c.replace("|", "\\|") for c in row] for row in rows]
        parts += [f"| `{o}` | {d and f'`{d}`'} | {r} | {h} |" for o, d, r, h in escaped]
    return "\n".join(parts).rstrip() + "\n"


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="write nothing; 1 if it is stale")
    if parser.parse_args().check:
        sys.exit("docs/options.md is stale: run make options" if DOC.read_text() != render() else 0)
    DOC.write_text(render())
