"""Record the answers of every method on fixed prompts, or compare them with a recording.

A refactoring must leave them as they are, token for token:

    python tests/answers.py --model constructed            # compare with the recording
    python tests/answers.py --model constructed --record   # replace the recording
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

RECORDING = Path(__file__).resolve().parent / "goldens" / "answers.json"
METHODS = "full,full_offload,retroinfer,quest,infinigen,oracle_topk,random,streaming"
SWEEPS = {  # name -> what is added to the command
    "defaults": ["task.length=[2048,4096]", f"method={METHODS}"],
    "batch": ["task.length=2048", "task.samples=3", "engine.batch=3", f"method={METHODS}"],
    "tail": ["task.length=2048", "protocol=decode_tail", f"method={METHODS}"],
    "caches": ["task.length=2048", "method=retroinfer,quest", "method.cache=host,device"],
    "updates": ["task.length=2048", "method=retroinfer", "method.update_tokens=64",
                "method.tokens_per_cluster=8", "method.overlap=true,false", "method.cache=device"],
    "ours": ["task.length=2048", "method=retroinfer", "method.error_tolerance=0.1",
             "method.second_order=true", "method.int4_values=true,false"],
}  # fmt: skip
TASKS = "task.tasks=[niah_single_2,vt,fwe]"


def answers(model: str, folder: Path) -> dict[str, list]:
    """``sweep/method/sample`` to answer, its tokens and status, from the rows of real runs."""
    found = {}
    for sweep, added in SWEEPS.items():
        results = folder / sweep
        command = [sys.executable, "run.py", "-m", f"model={model}", "task=ruler", TASKS, *added]
        samples = [] if any("samples" in word for word in added) else ["task.samples=1"]
        command += [*samples, f"results_dir={results}", "progress=false"]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        for cell in sorted(results.glob("*/cell.json")):
            method = json.loads(cell.read_text())["cell"]["method"]
            name = " ".join(str(method[key]) for key in _TOLD if key in method)
            for line in (cell.parent / "rows.jsonl").read_text().splitlines():
                row = json.loads(line)
                answer = [row.get("prediction"), row.get("generated_tokens"), row["status"]]
                found[f"{model}/{sweep}/{name}/{row['sample']}"] = answer
    return found


_TOLD = ("name", "cache", "overlap", "int4_values")


def main() -> None:
    """Record or compare; exit code 1 if an answer differs."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="constructed", help="a name of conf/model")
    parser.add_argument("--record", action="store_true", help="replace the recording")
    parser.add_argument("--file", type=Path, default=RECORDING, help="the recording")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        found = answers(options.model, Path(folder))
    known = json.loads(options.file.read_text()) if options.file.exists() else {}
    mine = {key: value for key, value in known.items() if key.startswith(f"{options.model}/")}
    if options.record:
        others = {key: value for key, value in known.items() if key not in mine}
        text = json.dumps({**others, **found}, indent=0, sort_keys=True, ensure_ascii=False)
        options.file.write_text(text + "\n")
        return
    differing = sorted(key for key in mine.keys() | found.keys() if mine.get(key) != found.get(key))
    for key in differing:
        print(f"{key}: {mine.get(key)} -> {found.get(key)}")
    print(f"{len(found)} answers, {len(differing)} differ")
    sys.exit(1 if differing else 0)


if __name__ == "__main__":
    main()
