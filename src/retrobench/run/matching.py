"""Matched budgets: a method's own knob, solved so that its measured cost equals a reference's.

The cost is measured, not computed: the task's first prompt is prefilled and decoded for as many
steps as the reference took, and the byte counters are read. Methods that choose whole pages or
clusters reach a cost only approximately; the table says how near they came.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from retrobench.core.budget import Budget
from retrobench.core.registry import method_class
from retrobench.core.spec import parse, to_plain
from retrobench.engine import loader
from retrobench.engine.prefill import PrefilledPrompt, prefill
from retrobench.engine.session import Session
from retrobench.engine.shape import kv_shape
from retrobench.measure.clock import monotonic_s
from retrobench.measure.probe import CountingProbe
from retrobench.run.group import run_cell
from retrobench.run.plan import prompt_builder
from retrobench.run.spec import RunSpec
from retrobench.store.results import OK, ResultStore

TOLERANCE = 0.02
STEPS = 16  # decode steps of a measurement, at most
TRIES = 7
_PLACEMENT = {"placement", "cache"}  # a reference lives where the method it is matched with does


@dataclass(frozen=True, slots=True, kw_only=True)
class Matched:
    """What was solved: ``knob=value`` costs ``measured`` where the reference costs ``target``."""

    axis: str
    reference: str
    knob: str
    value: str
    target: float
    measured: float

    @property
    def line(self) -> str:
        """The entry of the knob table."""
        off = self.measured / self.target - 1
        reach = "" if abs(off) <= TOLERANCE else ", the nearest that its whole pages or heads allow"
        return (
            f"match={self.axis} of {self.reference[:6]}: {self.knob}={self.value}, "
            f"{self.measured:.4g} against {self.target:.4g} ({off:+.1%}{reach})"
        )


def resolve(spec: RunSpec) -> tuple[RunSpec, str]:
    """The run with its knob solved, and the line of the knob table. Runs the reference first."""
    reference = reference_spec(spec)
    if reference is None:
        key = ResultStore(spec.options.results_dir).find(str(spec.reference))
    else:
        key = run_cell(reference).key
    solved, found = solve(spec, key)
    return solved, found.line


def reference_spec(spec: RunSpec) -> RunSpec | None:
    """The run that ``reference=METHOD@BUDGET`` names, of the same task; None for a cell key."""
    name, at, budget = (spec.reference or "").partition("@")
    if not at:
        return None
    fields = {f.name for f in dataclasses.fields(method_class(name).Config)}
    own = {f.name: f.default for f in dataclasses.fields(spec.method_config)}
    placed = {
        name: value
        for name, value in to_plain(spec.method_config).items()
        if name in fields & _PLACEMENT and value != own[name]
    }
    placed = {**spec.method_options.get(name, {}), **placed}
    config = parse(method_class(name).Config, placed, "method")
    changes = {"method": name, "method_config": config, "budget": Budget.parse(budget)}
    requested = {**_unmatched(spec), "method": {"name": name, **placed}, "budget": budget}
    return dataclasses.replace(
        spec, match=None, reference=None, requested_config=requested, **changes
    )


def solve(spec: RunSpec, key: str) -> tuple[RunSpec, Matched]:
    """The run with its knob set to match the cell ``key``; ValueError if there is no knob."""
    assert spec.match is not None
    loaded = loader.resident(spec.model)
    prompt = prompt_builder(spec.model)
    sample = next(iter(spec.make_task().samples(prompt)))
    row = ResultStore(spec.options.results_dir).read(key).rows.get(sample.id)
    if row is None or row["status"] != OK:
        raise ValueError(f"reference={key[:6]} has no answer to {sample.id}, the first sample here")
    target = cost(spec.match, row["live"], row["footprint"])
    if target == 0:
        raise ValueError(f"reference={key[:6]} costs nothing on the axis {spec.match}")
    ids = prompt.encode(sample).ids
    if spec.match == "gpu_memory":
        return _solve_memory(spec, key, loaded, len(ids), target)
    steps = min(STEPS, row["decode_steps"])
    prefilled = prefill(
        loaded.model,
        [ids],
        clock=monotonic_s,
        needs=spec.method_class.needs,
        chunk_tokens=spec.engine.chunk_tokens,
    )

    def measured(tokens: int) -> float:
        share = Budget.parse(_percent(tokens, len(ids)))
        return _measure(dataclasses.replace(spec, budget=share), loaded, prefilled, steps)

    tokens, found = search(measured, target, 1, len(ids))
    budget = Budget.parse(_percent(tokens, len(ids)))
    requested = {**_unmatched(spec), "budget": str(budget)}
    solved = dataclasses.replace(
        spec, budget=budget, match=None, reference=None, requested_config=requested
    )
    return solved, _matched(spec, key, "budget", str(budget), target, found)


def cost(axis: str, live: dict[str, Any], footprint: dict[str, int]) -> float:
    """Tokens attended, bytes over the bus, bytes read on the device, or bytes held there."""
    if axis == "tokens":
        return live["attended_tokens"]
    if axis == "gpu_memory":
        return footprint["device"]
    kinds = {"pcie": ("h2d", "d2h"), "hbm": ("kv", "index", "weights")}[axis]
    return sum(live["bytes_per_step"].get(kind, 0) for kind in kinds)


def search(
    measured: Callable[[int], float], target: float, low: int, high: int
) -> tuple[int, float]:
    """The whole number in [low, high] whose cost, growing in it, is nearest to the target.

    Costs are about a line (some layers may cost the same whatever the budget), so the next guess
    is on the line through the two nearest known ones, within a few measurements.
    """
    known: dict[int, float] = {}

    def ask(tokens: int) -> float:
        if tokens not in known:
            try:
                known[tokens] = measured(tokens)
            except ValueError:  # a budget below the static zone
                known[tokens] = 0.0
        return known[tokens]

    ask(high)
    guess = max(low, min(high, round(high * target / max(known[high], 1e-9))))
    for _ in range(TRIES):
        if abs(ask(guess) / target - 1) <= TOLERANCE / 4:
            break
        under = max((t for t, c in known.items() if c < target), default=low)
        over = min((t for t, c in known.items() if c >= target), default=high)
        if over - under <= 1:
            break
        guess = min(over - 1, max(under + 1, _on_the_line(known, target)))
        if guess in known:
            guess = (under + over) // 2
    best = min(known, key=lambda tokens: abs(known[tokens] - target))
    return best, known[best]


def _on_the_line(known: dict[int, float], target: float) -> int:
    """Where the line through the two costs nearest to the target reaches it."""
    costs = sorted(((t, c) for t, c in known.items() if c > 0), key=lambda e: abs(e[1] - target))
    if len(costs) < 2 or costs[0][1] == costs[1][1]:
        return round(costs[0][0] * target / max(costs[0][1], 1e-9)) if costs else 0
    (at, cost), (other, far) = costs[:2]
    guess = at + (target - cost) * (other - at) / (far - cost)
    return round(guess) if math.isfinite(guess) else at


def _unmatched(spec: RunSpec) -> dict[str, Any]:
    return {
        name: value
        for name, value in spec.requested_config.items()
        if name not in {"match", "reference"}
    }


def _percent(tokens: int, context: int) -> str:
    return f"{100 * tokens / context:.4f}%"


def _matched(
    spec: RunSpec, key: str, knob: str, value: str, target: float, found: float
) -> Matched:
    assert spec.match is not None
    return Matched(
        axis=spec.match, reference=key, knob=knob, value=value, target=target, measured=found
    )


@torch.inference_mode()
def _measure(spec: RunSpec, loaded: loader.Loaded, prompt: PrefilledPrompt, steps: int) -> float:
    probe = CountingProbe()
    session = Session(
        loaded.model,
        spec.method_class,
        spec.method_config,
        prompt,
        probe=probe,
        clock=monotonic_s,
        max_new_tokens=steps + 1,
        budget=spec.budget,
        dense_layers=spec.engine.dense_layers,
        last_use=False,
    )
    with session:
        session.build()
        for _ in range(steps):
            session.step(session.logits.argmax(-1, keepdim=True))
        session.report_counts()
        return cost(spec.match or "tokens", probe.row(), {"device": session.allocated().device})


def _solve_memory(
    spec: RunSpec, key: str, loaded: loader.Loaded, prompt_tokens: int, target: float
) -> tuple[RunSpec, Matched]:
    """Bytes on the device follow from the plan: the knob is a share of the method's own."""
    method = spec.method_class
    knob = method.memory_knob
    if knob is None:
        raise ValueError(f"match=gpu_memory: method={spec.method} has no knob for it")
    shape = kv_shape(loaded.model, (0,), prompt_tokens, 128)

    def configured(thousandths: int) -> Any:
        values = {**to_plain(spec.method_config), knob: thousandths / 1000}
        return parse(method.Config, values, "method")

    def held(thousandths: int) -> float:
        return method.plan(configured(thousandths), shape, spec.budget).device

    value, found = search(held, target, 1, 1000)
    config = configured(value)
    requested = {**_unmatched(spec), "method": {"name": spec.method, **to_plain(config)}}
    solved = dataclasses.replace(
        spec, method_config=config, match=None, reference=None, requested_config=requested
    )
    return solved, _matched(spec, key, f"method.{knob}", f"{value / 1000:g}", target, found)
