"""Matched budgets: a method's own knob, solved so that its measured cost equals a reference's.

The cost is measured, not computed: the task's first prompt is prefilled and decoded for as many
steps as the reference took, and the byte counters are read. Methods that choose whole pages or
clusters reach a cost only approximately; the table says how near they came.
"""

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Any

import torch

from retrobench.core.budget import Budget
from retrobench.core.registry import method_class
from retrobench.core.shapes import KVShape
from retrobench.core.spec import changed, parse, to_plain
from retrobench.engine import loader
from retrobench.engine.prefill import PrefilledPrompt, prefill
from retrobench.engine.session import built_session, plan_session
from retrobench.engine.shape import kv_shape
from retrobench.engine.sparse_prefill import SparsePrefill
from retrobench.measure.clock import monotonic_s
from retrobench.measure.probe import CountingProbe
from retrobench.run.plan import prompt_builder
from retrobench.run.spec import RunSpec
from retrobench.store.results import ResultStore
from retrobench.store.row_file import OK

TOLERANCE = 0.02
STEPS = 16  # decode steps of a measurement, at most
TRIES = 7
_PLACEMENT = {"placement", "cache"}  # a reference lives where the method it is matched with does


def reference_config(spec: RunSpec, raw: Mapping[str, Any]) -> dict[str, Any] | None:
    """The configuration that ``reference=METHOD@BUDGET`` names, of the same task.

    None for a cell key. Options of placement that the run was given are the reference's too.
    """
    name, at, budget = (spec.reference or "").partition("@")
    if not at:
        return None
    known = {f.name for f in dataclasses.fields(method_class(name).Config)}
    given = changed(spec.method_config)
    placed = {option: given[option] for option in given.keys() & known & _PLACEMENT}
    return {**_unmatched(raw), "method": {"name": name, **placed}, "budget": budget}


def solve(spec: RunSpec, raw: Mapping[str, Any], key: str) -> tuple[dict[str, Any], str]:
    """The configuration with its knob set to match the cell ``key``, and a line about it.

    ValueError if the reference does not tell a cost.
    """
    assert spec.match is not None
    loaded = loader.resident(spec.model)
    prompt = prompt_builder(spec.model)
    sample = next(iter(spec.make_task().samples(prompt)))
    row = ResultStore(spec.options.results_dir).read(key).rows.get(sample.id)
    if row is None or row["status"] != OK:
        raise ValueError(f"reference={key[:6]} has no answer to {sample.id}, the first sample here")
    target = cost(spec.match, row["live"], row["footprint"])
    target /= 1 if spec.match == "tokens" else row["batch"]  # bytes are those of all its rows
    if target == 0:
        raise ValueError(f"reference={key[:6]} costs nothing on the axis {spec.match}")
    ids = prompt.encode(sample).ids
    if spec.match == "gpu_memory":
        shape = kv_shape(loaded.model, (0,), len(ids), sample.max_new_tokens)
        knob, value, found = _solve_memory(spec, shape, target)
        changes = {"method": {**raw["method"], knob: value}}
        knob, value = f"method.{knob}", f"{value:g}"
    else:
        steps = min(STEPS, row["decode_steps"])
        value, found = _solve_budget(spec, loaded, ids, steps, target)
        knob, changes = "budget", {"budget": value}
    off = found / target - 1
    reach = "" if abs(off) <= TOLERANCE else ", the nearest that its whole pages or heads allow"
    line = f"match={spec.match} of {key[:6]}: {knob}={value}, "
    line += f"{found:.4g} against {target:.4g} ({off:+.1%}{reach})"
    return {**_unmatched(raw), **changes}, line


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


def _unmatched(raw: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in raw.items() if name not in {"match", "reference"}}


def _solve_budget(
    spec: RunSpec, loaded: loader.Loaded, ids: list[int], steps: int, target: float
) -> tuple[str, float]:
    """The budget whose measured cost is nearest to the target, and that cost."""
    prompt = prefill(
        loaded.model,
        [ids],
        clock=monotonic_s,
        needs=spec.needs,
        chunk_tokens=spec.engine.chunk_tokens,
        sparse=SparsePrefill.of(spec.prefill),
    )

    def budget(tokens: int) -> Budget:
        return Budget.parse(f"{100 * tokens / len(ids):.4f}%")

    def measured(tokens: int) -> float:
        return _measure(spec, budget(tokens), loaded, prompt, steps)

    tokens, found = search(measured, target, 1, len(ids))
    return str(budget(tokens)), found


@torch.inference_mode()
def _measure(
    spec: RunSpec, budget: Budget, loaded: loader.Loaded, prompt: PrefilledPrompt, steps: int
) -> float:
    probe = CountingProbe()
    with built_session(
        loaded.model,
        spec.method_class,
        spec.method_config,
        prompt,
        probe=probe,
        clock=monotonic_s,
        max_new_tokens=steps + 1,
        budget=budget,
        dense_layers=spec.engine.dense_layers,
        last_use=False,
    ) as session:
        for _ in range(steps):
            session.step(session.logits.argmax(-1, keepdim=True))
        session.report_counts()
        return cost(spec.match or "tokens", probe.row(), {"device": session.allocated().device})


def _solve_memory(spec: RunSpec, shape: KVShape, target: float) -> tuple[str, float, float]:
    """(knob, value, bytes): bytes on the device follow from the plan, so nothing is measured."""
    method = spec.method_class
    knob = method.memory_knob
    assert knob is not None  # as the options were read

    def held(thousandths: int) -> float:
        values = {**to_plain(spec.method_config), knob: thousandths / 1000}
        config = parse(method.Config, values, "method")
        return plan_session(method, config, shape, spec.budget, spec.engine.dense_layers).device

    value, found = search(held, target, 1, 1000)
    return knob, value / 1000, found
