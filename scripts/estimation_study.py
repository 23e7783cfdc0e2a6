"""Output error against bytes of RetroInfer's estimates, on a model's keys and on synthetic ones.

    python scripts/estimation_study.py                      # embedded models and synthetic regimes
    python scripts/estimation_study.py --models llama31_8b --length 32768

Decode steps of full attention are recorded and replayed through every variant, so that errors do
not compound; an error is |ours - exact| / |exact| of a query head's output, averaged over heads,
steps and layers. Bytes are those read per step, as a share of the whole KV cache. Results go to
``results/published/estimation_study.json`` with machine, versions and commit.
"""

from __future__ import annotations

import argparse
import json
import math
from pathlib import Path
from typing import Any

import torch
from recorded_steps import PUBLISHED, Recording, Step, record, replay
from torch import Tensor

from retrobench.core.method import AttentionArgs, PromptLayer
from retrobench.core.shapes import KVShape
from retrobench.engine.attention.exact import dense_decode
from retrobench.measure.clock import utc_now
from retrobench.measure.machine import provenance
from retrobench.measure.probe import CountingProbe

OUT = PUBLISHED / "estimation_study.json"
VARIANTS: dict[str, dict[str, Any]] = {
    "faithful": {},
    "no estimation": {"estimation_frac": 0.0},
    "twice the retrieval": {"retrieval_frac": 0.036},
    "all clusters (paper Eq. 2, 4)": {"estimation_frac": 1.0},
    "tail": {"tail": True},
    "second order": {"second_order": True},
    "tail, second order": {"tail": True, "second_order": True},
    "int4 values": {"int4_values": True},
    "int4 values, second order": {"int4_values": True, "second_order": True},
    "half retrieval, int4, second order": {
        "int4_values": True,
        "second_order": True,
        "retrieval_frac": 0.009,
    },
    "twice the retrieval, int4, second order": {
        "int4_values": True,
        "second_order": True,
        "retrieval_frac": 0.036,
    },
    "adaptive": {"error_tolerance": 1.0},
    "up to twice, adaptive": {"retrieval_frac": 0.036, "error_tolerance": 1.0},
    "up to twice, adaptive, int4, second order": {
        "int4_values": True,
        "second_order": True,
        "retrieval_frac": 0.036,
        "error_tolerance": 1.0,
    },
    "up to four times, adaptive, int4, second order": {
        "int4_values": True,
        "second_order": True,
        "retrieval_frac": 0.072,
        "error_tolerance": 1.0,
    },
}
# name: (RoPE, sharpness of the queries); from diffuse to peaked
REGIMES = {
    "diffuse": (False, 0.1),
    "mixed": (False, 0.3),
    "peaked": (False, 0.6),
    "RoPE, diffuse": (True, 0.06),
    "RoPE, mixed": (True, 0.15),
    "RoPE, peaked": (True, 0.6),
}


def synthetic(rope: bool, sharpness: float, steps: int, tokens: int = 16384) -> list[Recording]:
    """One head of clustered, anisotropic keys with a common mean and slow drift."""
    torch.manual_seed(0)
    dim, topics, total = 128, 64, tokens + steps
    topic = 1.2 * torch.randn(topics, dim)
    which = torch.randint(0, topics, (total // 32 + 1,)).repeat_interleave(32)[:total]
    scale = torch.exp(0.5 * torch.randn(dim))
    noise, drift = torch.randn(total, dim), torch.zeros(total, dim)
    for i in range(1, total):
        drift[i] = 0.9 * drift[i - 1] + 0.436 * noise[i]
    k = (topic[which] + 0.7 * drift + 0.5 * torch.randn(total, dim) + 3 * torch.randn(dim)) * scale
    if rope:
        frequency = 500000 ** -(torch.arange(0, dim, 2) / dim)
        angle = torch.arange(total)[:, None] * frequency
        even, odd = k[:, ::2].clone(), k[:, 1::2].clone()
        parts = even * angle.cos() - odd * angle.sin(), even * angle.sin() + odd * angle.cos()
        k = torch.stack(parts, -1).flatten(1)
    v = 0.7 * torch.randn(topics, dim)[which] + 0.7 * torch.randn(total, dim)
    near = k[torch.randint(0, total, (steps,))] - k.mean(0)
    q = sharpness * (near + 0.7 * k.std(0) * torch.randn(steps, dim))
    shape = KVShape(
        pad_tokens=(0,), layers=(0,), num_heads=1, num_kv_heads=1, head_dim=dim,
        prompt_tokens=tokens, max_tokens=total, dtype="float32",
    )  # fmt: skip
    k_BGSD, v_BGSD = k[None, None], v[None, None]
    decoded = [
        (q[None, None, i, None], k_BGSD[:, :, [tokens + i]], v_BGSD[:, :, [tokens + i]])
        for i in range(steps)
    ]
    prompt = PromptLayer(
        k_BGSD=k_BGSD[:, :, :tokens],
        v_BGSD=v_BGSD[:, :, :tokens],
        args=AttentionArgs(scale=1 / math.sqrt(dim)),
    )
    return [Recording(shape, prompt, decoded)]


def errors_and_bytes(recording: Recording, options: dict[str, Any]) -> tuple[list[float], float]:
    """Relative errors of every head and step, and bytes per step as a share of the KV cache."""
    prompt, probe, errors = recording.prompt, CountingProbe(), []
    kv = [prompt.k_BGSD, prompt.v_BGSD]

    def compare(_: Any, step: Step, out: Tensor) -> None:
        q, *new = step
        kv[:] = [torch.cat(pair, 2) for pair in zip(kv, new, strict=True)]
        exact = dense_decode(q, *kv, prompt.args).float()[:, :, 0]
        gap = (out.float()[:, :, 0] - exact).norm(dim=-1)
        errors.extend((gap / exact.norm(dim=-1).clamp_min(1e-12)).flatten().tolist())

    replay(recording, options, probe, compare)
    moved = probe.row()["bytes_per_step"]
    whole = recording.shape.kv_bytes_per_token * kv[0].shape[2]
    return errors, (moved["kv"] + moved["index"]) / whole


def study(recordings: list[Recording]) -> dict[str, dict[str, float]]:
    """Every variant on the same recordings."""
    rows = {}
    for name, options in VARIANTS.items():
        results = [errors_and_bytes(recording, options) for recording in recordings]
        errors = torch.tensor([error for found, _ in results for error in found])
        rows[name] = {
            "error": float(errors.mean()),
            "error_p90": float(errors.quantile(0.9)),
            "bytes_frac": sum(share for _, share in results) / len(results),
        }
    return rows


def main() -> None:
    """Run the study, print it and write it."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--models", nargs="*", default=["tiny", "constructed"])
    parser.add_argument("--tasks", nargs="*", default=["niah_multikey_1", "cwe"])
    parser.add_argument("--length", type=int, default=4096, help="prompt tokens")
    parser.add_argument("--steps", type=int, default=24, help="decode steps replayed")
    parser.add_argument("--no-synthetic", action="store_true")
    parser.add_argument("--out", type=Path, default=OUT)
    options = parser.parse_args()
    results: dict[str, Any] = {}
    jobs = [(f"{model} {task}", model, task) for model in options.models for task in options.tasks]
    for name, model, task in jobs:
        results[name] = study(record(model, task, options.length, options.steps))
        show(name, results[name])
        write(options, results)
    for name, (rope, sharpness) in {} if options.no_synthetic else REGIMES.items():
        results[f"synthetic: {name}"] = study(synthetic(rope, sharpness, options.steps))
        show(f"synthetic: {name}", results[f"synthetic: {name}"])
        write(options, results)


def write(options: argparse.Namespace, results: dict[str, Any]) -> None:
    """What there is so far: a long study that is stopped keeps its finished parts."""
    facts = {"length": options.length, "steps": options.steps, "variants": VARIANTS}
    found = {**facts, "results": results, "provenance": {**provenance(), "time": utc_now()}}
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(found, indent=1) + "\n")


def show(name: str, rows: dict[str, dict[str, float]]) -> None:
    """One table of the study."""
    print(f"\n{name}")
    for variant, row in rows.items():
        print(
            f"  {variant:48s} error {row['error']:.4f}  p90 {row['error_p90']:.4f}  "
            f"bytes {100 * row['bytes_frac']:.2f}%",
            flush=True,
        )


if __name__ == "__main__":
    main()
