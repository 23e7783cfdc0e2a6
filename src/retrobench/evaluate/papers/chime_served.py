"""CHIME's evaluation (arXiv 2504.17584, VII): a thousand requests, replayed on its systems."""

from collections.abc import Iterator
from functools import cache
from typing import Any, NamedTuple

import numpy as np

from retrobench.evaluate.papers.beside import Row, hardware
from retrobench.serving.costs import Memory
from retrobench.serving.dims import DIMS, ModelDims
from retrobench.serving.hardware import KINDS
from retrobench.serving.requests import PRESETS, Request, drawn_lengths
from retrobench.serving.served import Policy
from retrobench.serving.simulate import Simulation
from retrobench.serving.summary import Objectives, summarise
from retrobench.serving.traffic import full_attention

REQUESTS = 1000
COPIES = {"opt_66b": 4, "qwen_72b": 2, "gpt_175b": 1}  # of the model, on eight GPUs together
TRACES = ("openr1_math", "dolphin_r1", "openthoughts_math")
LONGEST = 32768
BLOCK = 256
ANY = Objectives(ttft_s=float("inf"), tpot_s=float("inf"))
SYSTEMS = {
    "GPU": ("gpu_a100", {"gpus": 8}),
    "HBM-PIM": ("hbm_pim", {"sub_batches": 2}),
    "ranks": ("dimm_pim", {"level": "rank"}),
    "CHIME": ("dimm_pim", {}),
}
SHARED = ("gpus", "ranks")  # what copies of a model share: each has its part
SHARED_BYTES = ("dimm_bytes", "dimm_bytes_per_s", "host_bytes")


class Served(NamedTuple):
    """Of one model and trace: the longest request, tokens per second by system.

    ``gap_ms``: 99th percentile between tokens on CHIME, prompts in adaptive pieces and whole.
    """

    model: str
    trace: str
    longest: int
    rates: dict[str, float]
    gap_ms: tuple[float, float]


def machine(system: str, dims: ModelDims, copies: int, **more: Any) -> Any:
    """A system's share for one copy of a model."""
    name, changes = SYSTEMS[system]
    whole = hardware(name, **changes, **more).config
    part = {n: getattr(whole, n) // copies for n in SHARED if hasattr(whole, n)}
    part |= {n: getattr(whole, n) / copies for n in SHARED_BYTES if hasattr(whole, n)}
    chosen = hardware(name, **{**changes, **more, **part})
    return KINDS[chosen.kind](chosen.config, dims, full_attention(dims.kv_token_bytes, LONGEST))


def replayed(model: Any, dims: ModelDims, asked: list[Request], *, chunked: bool) -> dict[str, Any]:
    """Requests that are all there at the beginning, on one copy."""
    memory = Memory(model.capacity[:1], lambda prompt, total: (float(total * dims.kv_token_bytes),))
    policy = Policy(max_batch=REQUESTS, chunked=chunked, block_tokens=BLOCK)
    return summarise(Simulation(model, memory, policy).run(asked), ANY)


@cache
def served() -> tuple[Served, ...]:
    """All models and traces on all systems."""
    return tuple(_served())


def _served() -> Iterator[Served]:
    for name, copies in COPIES.items():
        dims = DIMS[name]
        models = {system: machine(system, dims, copies) for system in SYSTEMS}
        fits = min(model.capacity[0] for model in models.values()) // dims.kv_token_bytes
        longest = min(LONGEST, int(fits) // BLOCK * BLOCK)
        for trace in TRACES:
            rng = np.random.default_rng(0)
            drawn = drawn_lengths(PRESETS[trace], REQUESTS // copies, longest, rng)
            asked = [Request(0.0, *lengths) for lengths in drawn]
            found = {s: replayed(m, dims, asked, chunked=True) for s, m in models.items()}
            rates = {s: copies * of["output_throughput"] for s, of in found.items()}
            whole = replayed(models["CHIME"], dims, asked, chunked=False)
            gaps = (found["CHIME"]["p99_itl_ms"], whole["p99_itl_ms"])
            yield Served(name, trace, longest, rates, gaps)


def rows() -> list[Row]:
    """The largest gain over models and traces, as the paper gives it."""
    found = []
    for system, paper in (("GPU", 3.94), ("HBM-PIM", 5.15), ("ranks", 7.21)):
        best = max(served(), key=lambda each: each.rates["CHIME"] / each.rates[system])
        gain = best.rates["CHIME"] / best.rates[system]
        note = f"VII-B; most over models and traces: {best.model}, {best.trace}"
        found.append(Row(f"CHIME over {system}, throughput x", gain, paper, note))
    best = min(served(), key=lambda each: each.gap_ms[0] / each.gap_ms[1])
    change = best.gap_ms[0] / best.gap_ms[1] - 1
    note = (
        f"scheduler; ours: 99th percentile, prompts in pieces or whole; {best.model}, {best.trace}"
    )
    return [*found, Row("adaptive pieces, time between tokens, change", change, -0.709, note)]


def matrix() -> str:
    """Tokens per second by model, trace and system, in Markdown."""
    lines = ["| model | requests | longest | " + " | ".join(SYSTEMS) + " |"]
    lines.append("|---" * (3 + len(SYSTEMS)) + "|")
    for each in served():
        rates = " | ".join(f"{each.rates[system]:.0f}" for system in SYSTEMS)
        lines.append(f"| {each.model} | {each.trace} | {each.longest} | {rates} |")
    return "\n".join(lines)
