"""What a run would take, known before any weights are read: key, missing samples, bytes, hours."""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache, reduce
from math import prod
from typing import Any

from retrobench.core.cell import Cell, digest
from retrobench.core.method import Needs
from retrobench.core.shapes import Footprint, KVShape, split_layers
from retrobench.core.spec import changed_text, identity, to_plain
from retrobench.core.task import Task
from retrobench.engine import loader
from retrobench.engine.executor import takes_graph
from retrobench.engine.overlap import waiting_bytes
from retrobench.engine.prefill import prompt_bytes
from retrobench.engine.rope import varies
from retrobench.engine.session import plan_session
from retrobench.engine.shape import kv_shape
from retrobench.evaluate import key_search
from retrobench.evaluate.calibrate import calibrated
from retrobench.measure.machine import NotEnoughMemory
from retrobench.run import replayed
from retrobench.run.servable import check_dense, check_served
from retrobench.run.spec import RunSpec
from retrobench.run.summary import RunSummary, check_memory
from retrobench.tasks import task_class
from retrobench.tasks.prompt import PromptBuilder
from retrobench.tasks.records import RecordsTask

_ANSWER_TOKENS = 128  # room that is planned for an answer


@dataclass(slots=True, kw_only=True)
class PreparedRun:
    """A run whose cell is known; the weights are not read yet."""

    spec: RunSpec
    prompt: PromptBuilder
    task: Task
    cell: Cell
    summary: RunSummary
    matched: str = ""  # how its knob was solved, if it was


def prepare(spec: RunSpec, calibration: str | None = None) -> PreparedRun:
    """Name the cell of a run from config files and tokenizer alone; ValueError for bad options.

    A calibration file belongs to weights. Where their id is not known cheaply, they are read here,
    unless the caller says what to put in the file's place.
    """
    if calibration is None and spec.calibrated:
        calibration = _calibration(spec)
    model, prompt, task = loader.describe(spec.model), prompt_builder(spec.model), spec.make_task()
    model_identity = task.model_identity() or {**model.identity, **prompt.identity}
    cell = make_cell(spec, model_identity, task.fingerprint(prompt), calibration)
    if spec.hardware is not None:
        machine = replayed.machine_identity(spec, cell)
        cell = dataclasses.replace(cell, engine={**cell.engine, "hardware": machine})
    labels = {
        "model": model_identity["name"],
        "method": spec.method,
        "changed": _changed(spec),
        "benchmark": spec.task,  # rows carry the sub-task as `task`
        "protocol": spec.protocol.identity,
        "measure": ",".join(spec.measure.parts),
        "budget": cell.budget,
    }
    request = digest({"task": identity(spec.task_config)})
    if spec.hardware is not None:
        labels["hardware"] = spec.hardware.name
    held, waiting, refusal, attended = Footprint(), 0, "", ""
    try:
        held, attended = _footprint(spec, model), _attended(spec, model)
        waiting = _waiting(spec, model, held)
    except ValueError as error:
        refusal = str(error)
    summary = RunSummary(
        key=cell.key,
        label=_label(labels, spec.engine.batch),
        labels=labels,
        request=request,
        group=_group(spec, model, cell, request),
        # a conversation's turns are not known before
        num_samples=None if spec.protocol.name == "multi_turn" else _num_samples(task),
        lengths=_lengths(spec),
        footprint=held,
        weight_bytes=model.weight_bytes if task.model_identity() is None else 0,
        device=model.device,
        mapped=bool(spec.model.device_map),
        waiting=waiting,
        notes=(*task.notes(), *model.warnings),
        refusal=refusal,
        attended=attended,
        ignored=spec.ignored,
        match="" if spec.match is None else f"match={spec.match} of {spec.reference}",
        asked=digest(spec.requested_config),
    )
    return PreparedRun(spec=spec, prompt=prompt, task=task, cell=cell, summary=summary)


def _calibration(spec: RunSpec) -> str | None:
    if (known := loader.known_weights_id(spec.model)) is not None:
        return spec.method_class.calibration(spec.method_config, known)
    loaded = loader.resident(spec.model)
    return calibrated(spec.method_class, spec.method_config, spec.data_root, loaded)


def _label(labels: dict[str, Any], batch: int) -> str:
    """Model, method, benchmark and whatever sets the cell apart, as one line."""
    words = [labels["model"], labels["method"], labels["benchmark"], labels["changed"]]
    words += [f"budget={labels['budget']}" if labels["budget"] else ""]
    words += [f"batch={batch}" if batch > 1 else ""]
    words += [labels["protocol"] if labels["protocol"] != "query_aware" else ""]
    words += [labels["hardware"]] if "hardware" in labels else []
    words += [labels["measure"] if labels["measure"] != "score" else ""]
    return " ".join(word for word in words if word)


def _changed(spec: RunSpec) -> str:
    """Options that set the method, or its prefill, apart from their defaults."""
    dense = ",".join(map(str, spec.engine.dense_layers))
    words = [changed_text(spec.method_config), f"engine.dense_layers=[{dense}]" if dense else ""]
    return " ".join(filter(None, [*words, spec.prefill.label]))


def make_cell(
    spec: RunSpec, model: dict[str, Any], fingerprint: str, calibration: str | None = None
) -> Cell:
    """The cell of a run; the numbers of samples that were asked for are left out of the key."""
    counts = task_class(spec.task).counts
    task = {k: v for k, v in identity(spec.task_config).items() if k not in counts}
    made = {} if calibration is None else {"calibration": calibration}
    return Cell(
        model=model,
        method={"name": spec.method, **to_plain(spec.method_config), **made},
        task={"name": spec.task, "fingerprint": fingerprint, **task},
        engine={**spec.engine.identity, **spec.prefill.identity},
        protocol=spec.protocol.identity,
        measure=spec.measure.parts,
        budget=None if spec.budget is None else str(spec.budget),
    )


def _footprint(spec: RunSpec, model: loader.ModelInfo) -> Footprint:
    """Bytes of the largest session; ValueError for lengths, budgets and options that cannot work.

    Free memory is another question: ``check_memory``.
    """
    check_served(spec, model)
    if spec.measure.name == "search":
        key_search.check(spec.method, spec.method_config, spec.engine.batch, spec.protocol.name)
    limit, largest = model.context_limit, Footprint()
    known = loader.known_weights_id(spec.model) if spec.calibrated else None
    for length in _lengths(spec):
        if limit is not None and length > limit:
            raise ValueError(
                f"task.length={length} is longer than the context of model "
                f"{model.identity['name']} ({limit} tokens); use a shorter task.length or "
                "another model"
            )
        shape = _shape(spec, model, length)
        check_dense(spec, shape)
        dense = spec.engine.dense_layers
        plan = plan_session(spec.method_class, spec.method_config, shape, spec.budget, dense)
        if known is not None:
            left = split_layers(shape, dense)[1]
            spec.method_class.check_calibrated(spec.method_config, known, left, spec.budget)
        no_graph = spec.method_class.no_graph(spec.method_config, shape)
        takes_graph(spec.engine.executor, no_graph, on_gpu=False)
        largest = max(largest, plan, key=lambda entry: entry.total)
    return largest


def _waiting(spec: RunSpec, model: loader.ModelInfo, held: Footprint) -> int:
    """Bytes of the longest prompt that wait while it is built, where the task says how long."""
    lengths = _lengths(spec)
    if not lengths:
        return 0
    shape = _shape(spec, model, max(lengths))
    return waiting_bytes(shape, held, spec.engine.prefill_stream and spec.streams)


def _attended(spec: RunSpec, model: loader.ModelInfo) -> str:
    """What dense layers make of a budget; empty where the plan knows of none."""
    lengths = _lengths(spec)
    if spec.budget is None or spec.budget.top_p is not None or not lengths:
        return ""
    shape, given = _shape(spec, model, lengths[0]), spec.engine.dense_layers
    own = spec.method_class.dense_layers(spec.method_config, split_layers(shape, given)[1])
    dense, layers = len({*given, *own} & {*shape.layers}), len(shape.layers)
    asked = {n: spec.budget.tokens(n, shape.kv_bytes_per_token) / n for n in lengths}
    share = dense / layers
    found = [f"{share + (1 - share) * frac:.0%} of {n} tokens" for n, frac in asked.items()]
    text = f"{dense} of {layers} layers are dense, so that budget={spec.budget} attends "
    return text + ", ".join(found) if dense else ""


def _shape(spec: RunSpec, model: loader.ModelInfo, length: int) -> KVShape:
    """The KV cache of a session at a prompt length."""
    turns = spec.protocol.turns if spec.protocol.name == "multi_turn" else 1
    rows = (0,) * spec.engine.batch
    shape = kv_shape(model.meta_model, rows, length, turns * _ANSWER_TOKENS)
    tail = spec.protocol.tail_tokens if spec.protocol.name == "decode_tail" else 0
    # the meta model has no device
    return dataclasses.replace(shape, device=model.device, tail_tokens=tail)


def _group(spec: RunSpec, model: loader.ModelInfo, cell: Cell, request: str) -> str:
    """Equal for cells whose samples start from the same prefilled prompts."""
    engine = spec.engine
    if engine.prefill_share == "off":
        return cell.key
    plain = cell.plain()
    same = {
        "model": plain["model"],
        "task": {**plain["task"], "request": request},
        "protocol": spec.protocol.identity,
        "prefill": to_plain(spec.prefill),
        "engine": [engine.batch, engine.chunk_tokens, engine.prefill_cache_gib],
        "place": [spec.model.device, spec.model.device_map],
        "records": spec.task == "trace" and spec.measure.name != "fidelity",
    }
    if spec.needs.prompt_mass:  # a sum over one window
        same["mass"] = spec.needs.prompt_mass
    if varies(model.meta_model):  # rope factors depend on the answer's length
        same["measure"] = plain["measure"]
    return digest(same)


def can_share(runs: Sequence[PreparedRun]) -> bool:
    """Whether one prefill of the longest prompt fits beside the largest method and the weights."""
    first = runs[0]
    if len(runs) < 2 or not first.summary.lengths:
        return True
    needs = reduce(Needs.__or__, (run.spec.needs for run in runs))
    model = loader.describe(first.spec.model)
    shared = prompt_bytes(_shape(first.spec, model, max(first.summary.lengths)), needs)
    largest = max((run.summary.footprint for run in runs), key=lambda entry: entry.total)
    try:
        weights = not loader.is_resident(first.spec.model)
        need = largest + Footprint(device=shared)
        check_memory(first.summary, need, weights=weights, waiting=False)
    except NotEnoughMemory:
        return False
    return True


def _lengths(spec: RunSpec) -> tuple[int, ...]:
    lengths = getattr(spec.task_config, "length", ())
    return lengths if isinstance(lengths, tuple) else (lengths,)


def plan_summary(spec: RunSpec) -> tuple[RunSummary, bool]:
    """The summary of a run, read from configuration files alone; whether its key is final.

    A method's calibration file belongs to weights, and many of them are not read for a plan.
    """
    unknown = spec.calibrated and loader.known_weights_id(spec.model) is None
    prepared = prepare(spec, "not read yet" if unknown else None)
    return prepared.summary, not unknown


def _num_samples(task: Task) -> int | None:
    """Samples of a task, where its options say so."""
    config: Any = task.config
    count = prod(getattr(config, name, 0) for name in task.counts)
    if not count:
        return None
    if isinstance(task, RecordsTask):
        return count * len(task.parts())
    for name in ("tasks", "length", "depths"):
        values = getattr(config, name, None)
        if isinstance(values, tuple) and values:
            count *= len(values)
        elif isinstance(values, int) and name == "depths":
            count *= values
    return count


@lru_cache(maxsize=4)
def prompt_builder(config: loader.ModelConfig) -> PromptBuilder:
    """The prompts of a model as its options want them."""
    return PromptBuilder(
        loader.describe(config).tokenizer,
        chat=config.chat,
        chat_date=config.chat_date,
        thinking=config.thinking,
    )
