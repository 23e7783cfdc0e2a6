"""The first fifteen minutes of a GPU: stages from the cheapest check to whole decode steps.

Every measurement is an ordinary sweep of run.py, so that rows are flushed case by case and the same
command goes on after a stop. The dry run says what each case needs, by arithmetic alone.
"""

import shlex
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.override_parser.overrides_parser import OverridesParser
from rich.console import Console

from retrobench.cli.overrides import composed, prepare
from retrobench.core.shapes import Footprint, KVShape
from retrobench.engine.attention.dense import DenseMethod
from retrobench.engine.overlap import waiting_bytes
from retrobench.engine.session import plan_session
from retrobench.report.tables.layout import print_line, print_table
from retrobench.run.spec import RunSpec, parse_run
from retrobench.serving.dims import DIMS
from retrobench.tasks.machine import PINNED
from retrobench.tasks.speed import SHAPES

SWEEP = "gpu_first"
PLACES = ("device GiB", "pinned GiB", "host GiB")
GIB = 2**30
DEVICE_BYTES, HOST_BYTES = 139 * GIB, 128 * GIB  # an H200 and the host beside it
MODEL = DIMS["llama31_8b"]
MODEL_BYTES = MODEL.weight_bytes + 128256 * MODEL.width * 2  # with the embedding of its tokens
# Assumed, to see that the stages fit their minutes; rows will tell. A third of the H200's
# 989 TFLOP/s (bf16, dense, its data sheet); one thread that registers host memory.
FLOP_S, REGISTERED_BYTES_S = 330e12, 3e9
START_S, CASE_S, STEP_S, KERNEL_S = 20, 4, 0.025, 3  # a process; a case; a step; a kernel's case

LONG = "task.context=122880"
TIMED = ("measure=latency", "task=speed", LONG, "task.steps=40", f"sweep={SWEEP}")
WHOLE = (*TIMED, "task.shape=model", "model=llama31_8b", "model.weights=random")
RESIDENT = "method_options.retroinfer={placement: gpu, cache: none}"
PINNED_METHOD = ("method=retroinfer", "method.placement=pinned")


@dataclass(frozen=True, slots=True)
class Stage:
    """One command, and the minutes after which it is stopped."""

    name: str
    minutes: float
    what: str
    overrides: tuple[str, ...] = ()  # of a sweep of run.py
    tests: tuple[str, ...] = ()  # or files of tests

    def command(self) -> list[str]:
        """As a shell would get it."""
        if self.tests:
            return [sys.executable, "-m", "pytest", "-q", *self.tests]
        return [sys.executable, "run.py", "-m", *self.overrides]


STAGES = (
    Stage("smoke", 0.5, "page-locked memory: registered, read and written by kernels, in a graph",
          tests=("tests/gpu/test_pinned_memory.py",)),
    Stage("tests", 3, "kernels, steps and methods against their naive forms", tests=("tests/gpu",)),
    Stage("ceilings", 1, "device memory; host memory by the copy engine and by a kernel", (
        "measure=latency", "method=full", "task=machine", "task.size_gib=4", "task.pool_gib=[1,8]",
        f"task.cases=[copy,read,launch,{','.join(PINNED)}]", f"sweep={SWEEP}")),
    Stage("layers", 1.5, "attention of eight layers, keys and values on the device", (
        *TIMED, "method=full,retroinfer", RESIDENT, "task.layers=8", "task.batch=[1,7]")),
    Stage("offload", 0.6, "attention of four layers over page-locked memory", (
        *TIMED, *PINNED_METHOD, "task.layers=4", "task.warmup=20", "task.drift=0.99,0.9")),
    Stage("decode", 4, "whole steps, keys and values on the device", (
        *WHOLE, "method=full,retroinfer", RESIDENT, "task.batch=[1,4]",
        "engine.prefill_share=off", "engine.chunk_tokens=2048")),
    Stage("decode_pinned", 1.5, "whole steps over page-locked memory, two managers of the cache", (
        *WHOLE, *PINNED_METHOD, "method.cache=device,host",
        "engine.prefill_share=off", "engine.prefill_stream=true")),
    Stage("index_build", 1.4, "the index build beside the prefill", (
        *WHOLE, "method=retroinfer", "method.placement=gpu,pinned", "task.steps=3",
        "engine.prefill_share=off", "engine.prefill_stream=true")),
    Stage("backends", 1, "full attention by other backends", (
        *TIMED, "method=full", "method.backend=cudnn,sdpa", "task.batch=[1,7]",
        "engine.executor=eager")),
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Case:
    """What one row needs: bytes by place, and seconds that are assumed."""

    label: str
    need: Footprint
    seconds: float

    def row(self) -> tuple[str, ...]:
        """For the table."""
        sizes = (self.need.device, self.need.pinned, self.need.host)
        gib = (f"{size / GIB:.1f}" for size in sizes)
        return (self.label, *gib, f"{self.seconds:.0f}", self.verdict)

    @property
    def verdict(self) -> str:
        """Whether it fits the machine."""
        if self.need.device > DEVICE_BYTES:
            return "too large for the device"
        host = self.need.pinned + self.need.host
        return "too large for the host" if host > HOST_BYTES else "fits"


def run(dry_run: bool, console: Console) -> int:
    """Run the stages, or say what they would do; 1 if one failed."""
    import torch

    if dry_run or not torch.cuda.is_available():
        if not dry_run:
            console.print("no CUDA device: nothing is run, this is what would be")
        _show(console)
        return 0
    failed = []
    for stage in STAGES:
        console.print(f"--- {stage.name}: {stage.what} ({stage.minutes:g} min at most)")
        start = time.monotonic()
        try:
            code = subprocess.run(stage.command(), timeout=60 * stage.minutes).returncode
        except subprocess.TimeoutExpired:
            code = -1
        how = {0: "done", -1: "stopped at its limit; rows so far are kept"}.get(code, "FAILED")
        console.print(f"--- {stage.name}: {how} after {time.monotonic() - start:.0f} s")
        failed += [stage.name] if code else []
    console.print(f"retrobench table --sweep {SWEEP} shows the rows; not done: {failed or 'none'}")
    return int(bool(failed))


def _show(console: Console) -> None:
    """Commands, minutes, and what every case needs."""
    rows = []
    for stage in STAGES:
        members = list(cases(stage))
        assumed = f", {assumed_minutes(members):.1f} assumed" if members else ""
        console.print(f"{stage.name}: {stage.what} ({stage.minutes:g} min at most{assumed})")
        print_line(console, f"  {shlex.join(['python', *stage.command()[1:]])}")
        rows += [(stage.name, *case.row()) for case in members]
    columns = ("stage", "case", *PLACES, "assumed s", "H200, 128 GiB")
    print_table(console, "what each case needs", columns, rows, left=("stage", "case"))
    minutes = sum(stage.minutes for stage in STAGES)
    console.print(f"{minutes:g} minutes at most; seconds are assumed, bytes are arithmetic")


def assumed_minutes(members: Sequence[Case]) -> float:
    """Of a stage, its process included."""
    return (START_S + sum(case.seconds for case in members)) / 60


def cases(stage: Stage) -> Iterator[Case]:
    """Every row of a stage's sweep; none for tests."""
    if not stage.overrides:
        return
    asked = OverridesParser.create().parse_overrides(prepare(stage.overrides))
    for job in BasicSweeper.split_arguments(asked, None)[0]:
        spec = parse_run(composed(job))
        yield from _machine(spec) if spec.task == "machine" else _speed(spec)


def _machine(spec: RunSpec) -> Iterator[Case]:
    """Copies take two buffers; a pool must be there twice over (see ``evaluate.machine``)."""
    config = spec.task_config
    for case in config.cases:
        if case in PINNED:
            for pool in config.pool_gib:
                size = round(pool * GIB)
                need = Footprint(device=min(size, 2**27), pinned=size)
                yield Case(f"{case} {pool:g} GiB", need, KERNEL_S + size / REGISTERED_BYTES_S)
        else:
            yield Case(case, Footprint(device=round(2 * config.size_gib * GIB)), KERNEL_S)


def _speed(spec: RunSpec) -> Iterator[Case]:
    """Weights, what the method holds, and what of the prompt waits for it."""
    config, whole = spec.task_config, spec.task_config.shape == "model"
    heads, groups, dim = SHAPES["llama31_8b"]
    for context in config.context:
        for batch in config.batch:
            layers = MODEL.layers if whole else config.layers
            shape = KVShape(
                pad_tokens=(0,) * batch, layers=tuple(range(layers)),
                num_heads=heads, num_kv_heads=groups, head_dim=dim, prompt_tokens=context,
                max_tokens=context + config.warmup + config.steps + 8, dtype="bfloat16",
                device="cuda",
            )  # fmt: skip
            held = _held(spec, shape)
            layer = shape.layer_token_bytes * batch * shape.max_tokens
            waiting = waiting_bytes(shape, held, spec.streams) if whole else 3 * layer
            need = held + Footprint(device=waiting + whole * MODEL_BYTES)
            seconds = CASE_S + STEP_S * (config.warmup + config.steps)
            seconds += held.pinned / REGISTERED_BYTES_S
            if whole:
                flop = MODEL.linear_flop(context) + MODEL.attention_flop(context, 0)
                seconds += batch * flop / FLOP_S
            yield Case(_label(spec, context, batch), need, seconds)


def _held(spec: RunSpec, shape: KVShape) -> Footprint:
    if spec.method == "full":  # whose own plan asks the backend whether it runs here
        return DenseMethod.plan(None, shape)
    return plan_session(spec.method_class, spec.method_config, shape, spec.budget)


def _label(spec: RunSpec, context: int, batch: int) -> str:
    config, words = spec.method_config, [spec.method]
    names = ("placement", "cache") if spec.method == "retroinfer" else ("backend",)
    words += [getattr(config, name) for name in names]
    drift = spec.task_config.drift
    words += [f"drift {drift:g}"] if drift else []
    return f"{' '.join(words)} {context} x {batch}"
