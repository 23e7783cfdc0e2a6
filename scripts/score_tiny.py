"""Score the embedded trained model on RULER and fill its card: ``python scripts/score_tiny.py``.

Finished samples are read from disk; ``--table-only`` runs nothing. Every task is run here, also
those that ``model=tiny`` refuses; the ones that reach 80 under full attention at 4096 tokens become
``supported_tasks.json``.
"""

from __future__ import annotations

import argparse
import json
import re
from typing import Any

import torch
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

from retrobench.cli.app import run_job
from retrobench.core.spec import parse
from retrobench.engine.loader import SUPPORTED, TINY_DIR, ModelConfig, describe
from retrobench.report.figures import style
from retrobench.store.results import OK, ResultStore
from retrobench.tasks.prompt import PromptBuilder
from retrobench.tasks.ruler import RulerConfig, RulerTask, spec

NAME = "tiny, every task"
CARD = TINY_DIR / "MODEL_CARD.md"
FIGURE = TINY_DIR / "attention.png"
THRESHOLD = 80.0  # score at 4096 tokens from which a task counts as one the model does
SHARES = (0.5, 0.9, 0.99)


def _model(options: Any) -> dict[str, str]:
    """``model=tiny`` without its list of supported tasks."""
    return {"name": NAME, "source": "local", "path": str(TINY_DIR), "dtype": options.dtype}


def run(method: str, tasks: list[str], length: int, samples: int, options: Any) -> None:
    """One cell per task, so that a stopped run keeps whole columns."""
    for task in tasks:
        outcome = run_job(
            {
                "model": _model(options),
                "method": {"name": method},
                "task": {"name": "ruler", "tasks": [task], "length": length, "samples": samples},
                "protocol": {"name": "query_aware"},
                "measure": {"name": "score"},
                "results_dir": options.results,
                "progress": False,
            }
        )
        print(f"{method} {task} {length}: {outcome['ran']} run, {outcome['cached']} on disk")


def table(options: Any) -> tuple[str, dict[str, float]]:
    """(the score table in Markdown, score of every task at 4096 tokens under full attention)."""
    store = ResultStore(options.results)
    revision = describe(parse(ModelConfig, _model(options), "model")).identity["revision"]
    keys = [key for key in store.cell_keys() if revision in json.dumps(store.cell(key))]
    if not keys:
        raise SystemExit(
            f"{options.results} has no rows of these weights: run without --table-only"
        )
    frame = store.frame(keys)
    frame = frame[frame["status"] == OK]
    cells = frame.groupby(["method", "task", "length"])["score"].agg(["mean", "count"])
    columns = sorted({(method, length) for method, _, length in cells.index}, key=_order)
    lines = ["| task | " + " | ".join(f"{m} {n}" for m, n in columns) + " |"]
    lines.append("|---|" + "---|" * len(columns))
    known: dict[str, float] = {}
    for task in spec.TASKS:
        parts = []
        for method, length in columns:
            if (method, task, length) not in cells.index:
                parts.append("")
                continue
            mean, count = cells.loc[(method, task, length)]
            parts.append(f"{100 * mean:.0f} ({count:.0f})")
            if (method, length) == ("full", 4096):
                known[task] = 100 * mean
        lines.append(f"| {task} | " + " | ".join(parts) + " |")
    return "\n".join(lines), known


def _order(column: tuple[str, int]) -> tuple[int, int]:
    method, length = column
    known = style.ORDER
    return (known.index(method) if method in known else len(known), length)


@torch.inference_mode()
def attention(length: int) -> str:
    """Tokens that hold 50, 90 and 99% of each head's mass while answering; draws the figure."""
    tokenizer = PreTrainedTokenizerFast.from_pretrained(TINY_DIR)
    model = AutoModelForCausalLM.from_pretrained(TINY_DIR, dtype=torch.float32).eval()
    task = RulerTask(RulerConfig(tasks=("niah_multikey_1",), length=(length,), samples=2))
    prompt = PromptBuilder(tokenizer)
    counts: list[torch.Tensor] = []
    mass: list[torch.Tensor] = []
    for sample in task.samples(prompt):
        model.set_attn_implementation("sdpa")
        output = model(torch.tensor([prompt.encode(sample).ids]), use_cache=True)
        model.set_attn_implementation("eager")
        for _ in range(10):
            token = output.logits[:, -1:].argmax(-1)
            output = model(
                token,
                past_key_values=output.past_key_values,
                use_cache=True,
                output_attentions=True,
            )
            weights_LHS = torch.stack([layer[0, :, 0] for layer in output.attentions])
            total_LHS = weights_LHS.sort(-1, descending=True).values.cumsum(-1)
            share = torch.tensor(SHARES).view(-1, 1, 1, 1)
            counts.append((total_LHS < share).sum(-1) + 1)
            mass.append(total_LHS[..., : length // 2])
    median = torch.stack(counts).median(0).values
    _draw(torch.stack(mass).mean(0))
    lines = [f"| layer | {' | '.join(f'head {h}' for h in range(median.shape[2]))} |"]
    lines.append("|---|" + "---|" * median.shape[2])
    for layer in range(median.shape[1]):
        heads = (median[:, layer, head].tolist() for head in range(median.shape[2]))
        lines.append(f"| {layer} | " + " | ".join("/".join(map(str, h)) for h in heads) + " |")
    return "\n".join(lines)


def _draw(mass_LHS: torch.Tensor) -> None:
    figure, axes = style.figure(2.0, mass_LHS.shape[0], width=style.TWO_COLUMNS)
    for layer, axis in enumerate(axes):
        for head, curve in enumerate(mass_LHS[layer]):
            axis.semilogx(range(1, len(curve) + 1), curve, color=style.COLORS[head + 1])
        axis.set(title=f"layer {layer}", xlabel="tokens, largest first", ylim=(0, 1.02))
    axes[0].set_ylabel("attention mass")
    figure.savefig(FIGURE, dpi=130)


def fill(name: str, content: str) -> None:
    """Replace what stands between the card's markers of that name."""
    text = CARD.read_text(encoding="utf-8")
    pattern = re.compile(rf"(<!-- {name} -->\n).*?(\n<!-- /{name} -->)", re.DOTALL)
    if not pattern.search(text):
        raise ValueError(f"{CARD}: no <!-- {name} --> ... <!-- /{name} --> to fill")
    CARD.write_text(pattern.sub(lambda m: m[1] + content + m[2], text), encoding="utf-8")


def main() -> None:
    """Run what is missing, then write the card and the list of supported tasks."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--lengths", nargs="+", type=int, default=[4096, 16384])
    parser.add_argument("--samples", type=int, default=50, help="per task and length")
    parser.add_argument("--methods", nargs="+", default=["full"])
    parser.add_argument("--tasks", nargs="+", default=list(spec.TASKS), choices=spec.TASKS)
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16"))
    parser.add_argument("--results", default="results/tiny_scores", help="folder of the rows")
    parser.add_argument("--table-only", action="store_true", help="run nothing, fill the card")
    parser.add_argument("--attention-length", type=int, default=4096)
    options = parser.parse_args()
    if not options.table_only:
        for method in options.methods:
            for length in options.lengths:
                run(method, options.tasks, length, options.samples, options)
    scores, known = table(options)
    fill("scores", scores)
    fill("attention", attention(options.attention_length))
    supported = [task for task, score in known.items() if score >= THRESHOLD]
    (TINY_DIR / SUPPORTED).write_text(json.dumps(supported) + "\n", encoding="utf-8")
    print(scores)
    print(f"supported: {', '.join(supported)}")


if __name__ == "__main__":
    main()
