"""Replays the requests of ``task=serve`` on a machine: one call makes one row.

The machine is a cost model (``retrobench.serving.hardware``) fed with the bytes that the method
moves, or the step times that were measured here (``hardware=measured``).
"""

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

from retrobench.core.cell import digest
from retrobench.core.method import Method
from retrobench.core.shapes import KVShape
from retrobench.core.spec import to_plain
from retrobench.core.task import Sample
from retrobench.evaluate.counted import traffic_curve
from retrobench.serving.costs import Bytes, Memory, StepCost
from retrobench.serving.dims import ModelDims
from retrobench.serving.hardware import KINDS, MEASURED, Hardware
from retrobench.serving.served import Policy, Served, SimulatedRun
from retrobench.serving.simulate import Simulation
from retrobench.serving.summary import Objectives, good_share, largest_rate, summarise, sustained
from retrobench.serving.surface import Point, Surface
from retrobench.serving.traffic import TrafficCurve, full_attention
from retrobench.store.results import ResultStore
from retrobench.store.row_file import OK
from retrobench.tasks.serve import ServeConfig, ServeTask

LABEL = "replay"  # in every row and figure: nothing was served

Enough = Callable[[Served], bool]


@dataclass(frozen=True, slots=True, kw_only=True)
class Replay:
    """What is replayed. ``shape``: the KV cache of one sequence of the model."""

    task: ServeTask
    hardware: Hardware
    method_class: type[Method]
    method_config: Any
    budget: Any
    dims: ModelDims
    shape: KVShape
    points: tuple[Point, ...] = ()


@dataclass(slots=True, kw_only=True)
class Machine:
    """Step costs and memory for one method, and where its bytes or times are from."""

    cost: StepCost
    memory: Memory
    source: str


def measure(replay: Replay, sample: Sample) -> dict[str, Any]:
    """Fields of one sample for its row."""
    config = replay.task.config
    machine = make_machine(replay)
    objectives = Objectives(ttft_s=config.slo_ttft_s, tpot_s=config.slo_tpot_s)

    def run(rate: float, enough: Enough | None = None) -> SimulatedRun:
        policy = policy_of(config, machine.cost)
        asked = replay.task.requests(rate)
        return Simulation(machine.cost, machine.memory, policy).run(asked, enough)

    found: dict[str, Any] = {"kind": LABEL, "counts": machine.source}
    found |= {"hardware": replay.hardware.name, "requests": requests_text(config)}
    found |= {name: getattr(config, name) for name in ("slo_ttft_s", "slo_tpot_s", "good_share")}
    rate = sample.meta.get("rate", 0.0)
    if rate is None:
        total = len(replay.task.requests(1.0))
        rate, bound = _largest(run, total, objectives, config.good_share)
        found["bound"] = bound
        if not rate:
            return {LABEL: found | {"request_rate": 0.0, "request_goodput": 0.0, "good_frac": 0.0}}
    found["request_rate"] = rate
    outcome = run(rate)
    found |= {"burstiness": config.burstiness, "max_concurrency": _clients(config)}
    found |= summarise(outcome, objectives)
    found |= _memory(machine.memory, outcome) | _money(found, replay.hardware.config.usd_per_hour)
    if isinstance(machine.cost, Surface):
        found |= {"extrapolated_steps": machine.cost.outside, "surface": machine.cost.errors()}
    return {LABEL: found}


def _largest(
    run: Callable[[float, Enough], SimulatedRun], total: int, objectives: Objectives, share: float
) -> tuple[float, str]:
    """The largest rate with that share of good requests of ``total``, and what bounds it.

    ``requests``: so few are one burst beyond it, while they are still good; ``objectives``: more of
    them would miss them.
    """

    def good_at(rate: float) -> SimulatedRun | None:
        """What became of them; None, as soon as too many are not good."""
        missed = 0

        def enough(served: Served) -> bool:
            nonlocal missed
            missed += not objectives.good(served)
            return (total - missed) / total < share

        outcome = run(rate, enough)
        return outcome if good_share(outcome, objectives) >= share else None

    def holds(rate: float) -> bool:
        outcome = good_at(rate)
        return outcome is not None and sustained(outcome, rate)

    rate = largest_rate(holds, 1.0)
    burst = rate > 0 and good_at(1.1 * rate) is not None
    return rate, "requests" if burst else "objectives"


def requests_text(config: ServeConfig) -> str:
    """What is asked, for the line below a figure."""
    kind = f"trace {config.trace}" if config.trace else config.lengths
    if config.lengths == "fixed" and not config.trace:
        kind = f"{config.input_tokens} tokens in, {config.output_tokens} out"
    arrivals = f"{config.clients} clients" if config.arrivals == "closed" else config.arrivals
    return f"{config.requests} requests of {kind}, {arrivals}"


def policy_of(config: ServeConfig, cost: StepCost) -> Policy:
    """The options of the task, and the machine's limit."""
    return Policy(
        max_batch=min(config.max_batch, cost.max_batch),
        chunked=config.chunked,
        reserve=config.reserve,
        block_tokens=config.block_tokens,
        clients=_clients(config) or 0,
    )


def make_machine(replay: Replay) -> Machine:
    """Step costs and memory of the method on the machine."""
    hardware, config = replay.hardware, replay.task.config
    block = config.block_tokens
    if hardware.kind == MEASURED:
        cost = Surface(replay.points, hardware.config.extrapolate)
        capacity: Bytes = (hardware.config.memory_gib * 2**30,)
        need = planned(replay, "cpu", block, lambda plan: (plan.total,))
        return Machine(cost=cost, memory=Memory(capacity, need), source="measured steps")
    kind = KINDS[hardware.kind]
    curve = _curve(replay, flash=hardware.kind == "csd")
    model = kind(hardware.config, replay.dims, curve)
    need = planned(replay, "cuda", block, model.held)
    return Machine(cost=model, memory=Memory(model.capacity, need), source=curve.source)


def planned(replay: Replay, device: str, block: int, held: Any) -> Any:
    """Bytes of a request by the method's own ``plan``, for token counts in whole blocks."""

    @cache
    def need(prompt: int, total: int) -> Bytes:
        tokens = {"prompt_tokens": prompt, "max_tokens": max(prompt, total)}
        shape = dataclasses.replace(replay.shape, **tokens, device=device)
        plan = replay.method_class.plan(replay.method_config, shape, replay.budget)
        return tuple(float(part) for part in held(plan))

    return lambda prompt, total: need(-(-prompt // block) * block, total)


def _curve(replay: Replay, flash: bool) -> TrafficCurve:
    """Bytes of a step: by formula for full attention, counted for the others."""
    most = replay.task.config.max_context
    if not replay.method_class.budgeted and replay.method_class.name == "full":
        return full_attention(replay.dims.kv_token_bytes, most)
    return traffic_curve(
        replay.method_class, replay.method_config, replay.budget, replay.dims, most,
        flash=flash, device="cuda",
    )  # fmt: skip


def surface_points(
    store: ResultStore, model: Mapping[str, Any], method: Mapping[str, Any], budget: str | None
) -> tuple[Point, ...]:
    """Steps of whole models that were measured for just this method, in order.

    ValueError naming the command where there are none.
    """
    points = []
    for key in store.sound_keys():
        cell = store.cell(key)["cell"]
        task = cell["task"]
        if (task["name"], task.get("shape")) != ("speed", "model") or cell["model"] != model:
            continue
        if cell["method"] == method and cell["budget"] == budget:
            points += [_point(row) for row in store.read(key).rows.values() if row["status"] == OK]
    if not points:
        name = method["name"]
        raise ValueError(
            f"hardware=measured: no steps of method={name} with this model in {store.root}; "
            f"measure them: python run.py -m experiment=surface method={name}"
        )
    return tuple(sorted(points, key=lambda point: (point.batch, point.context)))


def _point(row: Mapping[str, Any]) -> Point:
    return Point(
        context=row["length"],
        batch=row["batch"],
        prefill_s=row["prefill_s"] + row["seal_s"],
        step_s=row["speed"]["step_s"],
    )


def points_digest(points: tuple[Point, ...]) -> str:
    """Of measured steps, for the key of a cell that uses them."""
    return digest([to_plain(point) for point in points])


def _clients(config: ServeConfig) -> int | None:
    return config.clients if config.arrivals == "closed" else None


def _memory(memory: Memory, outcome: SimulatedRun) -> dict[str, float]:
    """The fullest pool."""
    shares = [peak / room for peak, room in zip(outcome.peak, memory.capacity, strict=True) if room]
    return {"peak_memory_frac": max(shares, default=0.0)}


def _money(found: Mapping[str, Any], usd_per_hour: float) -> dict[str, float]:
    rate = found["output_throughput"]
    return {"usd_per_million_tokens": usd_per_hour / 3600 / rate * 1e6} if rate else {}
