"""One run as typed values: what Hydra composed, checked option by option."""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from retrobench.core.budget import Budget
from retrobench.core.method import Method, Needs
from retrobench.core.registry import method_class, method_names
from retrobench.core.spec import choice, identity, layer_list, option, parse, share, unknown
from retrobench.core.task import Task
from retrobench.engine.loader import ModelConfig
from retrobench.engine.sparse_prefill import PrefillConfig
from retrobench.run.composed import APART, FLAGS, KNOWN, check_composed
from retrobench.serving.hardware import Hardware, parse_hardware
from retrobench.tasks import task_class


@dataclass(frozen=True, kw_only=True)
class EngineConfig:
    """Options of ``engine.*``."""

    batch: int = option(1, "prompts per session (left-padded)", low=1, high=65536)
    chunk_tokens: int = option(4096, "prefill in pieces of this many tokens", low=1)
    temperature: float = option(0.0, "sampling temperature; 0: greedy", low=0)
    top_p: float = share(1.0, "nucleus sampling: among the likeliest tokens with this share")
    top_k: int = option(0, "sample among so many tokens, before top_p; 0: all", low=0, added=True)
    seed: int = option(0, "seed of sampling", low=0)
    prefill_share: str = choice(
        ("auto", "off"),
        "auto: cells of a sweep that start from the same prompts share one prefill, if memory "
        "allows; off: each cell prefills for itself",
    )
    prefill_cache_gib: float = option(
        0.0, "keep prefilled prompts on disk, up to this size; 0: none", low=0
    )
    prefill_stream: bool = option(
        False,
        "prefill layer by layer, the whole prompt at once, and build a layer's index while the "
        "next one computes: two layers of keys and values are on the device, not all (needs a "
        "session that alone uses the prompt)",
        added=True,
    )
    executor: str = choice(
        ("auto", "eager", "graph"),
        "who runs a decode step: eager, the model's forward; graph, one CUDA graph of it (greedy); "
        "auto: a graph on a GPU where the method allows it",
    )
    dense_layers: tuple[int, ...] = layer_list(
        (), "layers left to full attention with any method, e.g. [0,1]"
    )

    @property
    def identity(self) -> dict[str, Any]:
        """For the cell key. Dense layers and executor enter it only if they are set."""
        dropped = {"prefill_share", "prefill_cache_gib"}
        dropped |= set() if self.dense_layers else {"dense_layers"}
        dropped |= {"executor"} if self.executor in ("auto", "eager") else set()
        return {name: v for name, v in identity(self).items() if name not in dropped}


@dataclass(frozen=True, kw_only=True)
class ProtocolConfig:
    """Options of ``protocol.*``: which prompt tokens go through the method's decode path."""

    name: str = choice(
        ("query_aware", "query_agnostic", "decode_tail", "multi_turn"),
        "what of the prompt is decoded by the method. query_aware: nothing; query_agnostic: the "
        "question; decode_tail: the last tail_tokens; multi_turn: question after question",
    )
    tail_tokens: int = option(32, "decode_tail: last tokens of the prompt", low=1)
    turns: int = option(
        4, "multi_turn: questions on a context, where the task has so many", low=2, high=16
    )

    @property
    def identity(self) -> str:
        """Name and, where it has one, the number that belongs to it, for the cell key."""
        own = {"decode_tail": self.tail_tokens, "multi_turn": self.turns}.get(self.name)
        return self.name if own is None else f"{self.name}:{own}"


@dataclass(frozen=True, kw_only=True)
class MeasureConfig:
    """Options of ``measure.*``."""

    name: str = choice(
        ("score", "latency", "fidelity", "replay", "search"),
        "score: answers; latency: also times the parts of a step; fidelity: distance from exact "
        "attention; replay: a simulated queue (task=serve); search: how many of the best keys an "
        "index finds",
    )
    score: bool = option(
        False, "fidelity: also answer freely and score (measure=score,fidelity says the same)"
    )
    steps: int = option(32, "fidelity, search: decode steps compared, at most", low=2)
    arrays: bool = option(
        False, "fidelity: also write every value by step, layer and head (parquet in the cell)"
    )

    @property
    def parts(self) -> tuple[str, ...]:
        """What is measured, for the cell key."""
        return ("score", "fidelity") if self.name == "fidelity" and self.score else (self.name,)


@dataclass(frozen=True, kw_only=True)
class RunOptions:
    """Top-level options that do not change results."""

    results_dir: str = "results/runs"
    dry_run: bool = False
    retry: bool = False
    progress: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class RunSpec:
    """Everything that one run was asked for."""

    model: ModelConfig
    method: str
    method_config: Any
    task: str
    task_config: Any
    data_root: str
    protocol: ProtocolConfig
    measure: MeasureConfig
    engine: EngineConfig
    prefill: PrefillConfig
    hardware: Hardware | None  # of measure=replay
    budget: Budget | None
    tracker: dict[str, Any]
    options: RunOptions
    ignored: str = ""  # what the run does not use of what was asked
    sweep: str | None = None
    match: str | None = None  # tokens | pcie | hbm | gpu_memory
    reference: str | None = None  # a cell's key, or METHOD@BUDGET
    method_options: dict[str, dict[str, Any]] = field(default_factory=dict)  # by method
    requested_config: dict[str, Any] = field(default_factory=dict)  # composed, of the cell

    @property
    def method_class(self) -> type[Method]:
        """The method's class."""
        return method_class(self.method)

    @property
    def needs(self) -> Needs:
        """What the method asks of the engine."""
        return self.method_class.needs_of(self.method_config)

    @property
    def calibrated(self) -> bool:
        """Whether the method needs a file made from this model; synthetic data makes its own."""
        return self.needs.calibration and self.make_task().model_identity() is None

    @property
    def streams(self) -> bool:
        """Whether its prefill may stream: it is asked for, and nothing stands against it."""
        apart = self.model.device_map or self.engine.prefill_cache_gib or self.needs.layer_inputs
        return self.engine.prefill_stream and not apart and self.model.source != "trace"

    def make_task(self) -> Task:
        """The benchmark."""
        return task_class(self.task)(self.task_config, self.data_root)


AXES = ("tokens", "pcie", "hbm", "gpu_memory")


def parse_run(raw: Mapping[str, Any]) -> RunSpec:
    """The composed configuration as a RunSpec; ValueError names the option at fault."""
    check_composed(raw)
    for name in raw:
        if name not in {*KNOWN, "hydra"}:
            raise unknown(name, "option", sorted(KNOWN))
    method, method_values = _named(raw, "method")
    by_method = _method_options(raw)
    method_values = {**by_method.get(method, {}), **method_values}
    task, task_values = _named(raw, "task")
    measure = dict(raw.get("measure", {}))
    if (only := task_class(task).measure) is not None:
        if measure.get("name", "score") not in ("score", only):
            raise ValueError(f"measure={measure['name']}: task={task} has measure={only} only")
        measure["name"] = only
    elif measure.get("name") == "replay":
        raise ValueError(f"measure=replay simulates the queue of task=serve, not task={task}")
    budget, protocol = raw.get("budget"), parse(ProtocolConfig, raw.get("protocol", {}), "protocol")
    budget = None if budget is None else Budget.parse(budget)
    _check_adaptive(method, budget)
    engine_values = dict(raw.get("engine") or {})
    engine_values.pop("reuse_prefill_gib", None)  # older: prefill_share=auto does it
    engine = parse(EngineConfig, engine_values, "engine")
    if protocol.name == "multi_turn" and (only or task == "trace"):
        raise ValueError(f"protocol=multi_turn: task={task} has no questions to go on with")
    if protocol.name in ("query_agnostic", "multi_turn") and engine.batch > 1:
        raise ValueError(f"protocol={protocol.name} runs with engine.batch=1 only")
    prefill = parse(PrefillConfig, raw.get("prefill", {}), "prefill")
    if prefill.identity and engine.batch > 1:
        raise ValueError(f"prefill={prefill.name} runs with engine.batch=1 only")
    task_config = parse(task_class(task).Config, task_values, "task")
    repeats = task_config.repeats if "repeats" in task_class(task).counts else 1
    if repeats > 1 and engine.temperature == 0:
        raise ValueError(
            f"task.repeats={repeats} with engine.temperature=0 gives {repeats} equal answers; "
            "sample, for example engine.temperature=0.6 engine.top_p=0.95"
        )
    model = parse(ModelConfig, raw.get("model", {}), "model")
    if task_class(task)(task_config).model_identity() is not None:
        model = ModelConfig(source="constructed", device=model.device)  # it is always here
    return RunSpec(
        model=model,
        method=method,
        method_config=parse(method_class(method).Config, method_values, "method"),
        task=task,
        task_config=task_config,
        data_root=str(raw.get("data", {}).get("root", "data")),
        protocol=protocol,
        measure=parse(MeasureConfig, measure, "measure"),
        engine=engine,
        prefill=prefill,
        hardware=parse_hardware(raw.get("hardware") or {}) if only == "replay" else None,
        budget=budget if method_class(method).budgeted else None,
        ignored=_ignored(method, budget),
        tracker=dict(raw.get("tracker", {"name": "none"})),
        options=parse(RunOptions, {k: raw[k] for k in FLAGS if k in raw}, ""),
        sweep=None if raw.get("sweep") is None else str(raw["sweep"]),
        **_matching(raw, method),
        method_options=by_method,
        requested_config={name: value for name, value in raw.items() if name not in APART},
    )


def _check_adaptive(method: str, budget: Budget | None) -> None:
    """ValueError for a budget of attention mass where the method takes a fixed number of tokens."""
    found = method_class(method)
    if budget is None or budget.top_p is None or found.adaptive or not found.budgeted:
        return
    able = ", ".join(name for name in method_names() if method_class(name).adaptive)
    raise ValueError(
        f"budget={budget}: method={method} cannot choose how many tokens it takes from step to "
        f"step; give it a share (10%) or tokens (1024tok). Methods that can: {able}"
    )


def _ignored(method: str, budget: Budget | None) -> str:
    """A note on a budget that the method has no use for (a sweep gives one to all its methods)."""
    if budget is None or method_class(method).budgeted:
        return ""
    return f"budget={budget} is not used: method={method} attends to all tokens"


def _matching(raw: Mapping[str, Any], method: str) -> dict[str, str | None]:
    match, reference = raw.get("match"), raw.get("reference")
    if match is None:
        return {}
    if match not in AXES:
        raise unknown(f"match={match}", "axis", AXES)
    if not reference:
        raise ValueError(
            "match needs reference=KEY (a cell on disk) or reference=METHOD@BUDGET (quest@5%)"
        )
    if raw.get("budget") is not None and match != "gpu_memory":
        raise ValueError(f"match={match} solves the budget; leave budget= out")
    if match == "gpu_memory" and method_class(method).memory_knob is None:
        able = ", ".join(name for name in method_names() if method_class(name).memory_knob)
        raise ValueError(
            f"match=gpu_memory: no option decides what method={method} holds; methods that have "
            f"one: {able}"
        )
    return {"match": match, "reference": str(reference)}


def _method_options(raw: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Options that one method of a sweep takes and the others do not have."""
    given = {name: dict(values or {}) for name, values in (raw.get("method_options") or {}).items()}
    for name in given:
        if name not in method_names():
            raise unknown(f"method_options.{name}", "method", method_names())
        fields = dataclasses.fields(method_class(name).Config)
        known = [f.name for f in fields] + [f.metadata.get("was", "") for f in fields]
        for option_name in given[name]:
            if option_name not in known:
                raise unknown(f"method_options.{name}.{option_name}", "option", filter(None, known))
    return given


def _named(raw: Mapping[str, Any], group: str) -> tuple[str, dict[str, Any]]:
    values = dict(raw.get(group) or {})
    if "name" not in values:
        raise ValueError(f"{group}: choose one with {group}=NAME")
    return str(values.pop("name")), values
