"""Benchmarks: samples and scores. They never see a method."""

import importlib

from retrobench.core.spec import unknown
from retrobench.core.task import Task

_TASKS = {
    "ruler": "retrobench.tasks.ruler:RulerTask",
    "niah": "retrobench.tasks.niah:NiahTask",
    "trace": "retrobench.tasks.trace:TraceTask",
    "long_generation": "retrobench.tasks.long_generation:LongGenerationTask",
    "reasoning": "retrobench.tasks.reasoning:ReasoningTask",
    "longbench": "retrobench.tasks.longbench.task:LongBenchTask",
    "speed": "retrobench.tasks.speed:SpeedTask",
    "serve": "retrobench.tasks.serve:ServeTask",
    "machine": "retrobench.tasks.machine:MachineTask",
    "babilong": "retrobench.tasks.babilong.task:BabilongTask",
    "infinitebench": "retrobench.tasks.infinitebench.task:InfiniteBenchTask",
    "scbench": "retrobench.tasks.scbench.task:ScbenchTask",
    "text2json": "retrobench.tasks.text2json:Text2JsonTask",
    "mrcr": "retrobench.tasks.mrcr.task:MrcrTask",
    "longbench_v2": "retrobench.tasks.longbench.v2:LongBenchV2Task",
}


def task_names() -> list[str]:
    """Names of all benchmarks."""
    return sorted(_TASKS)


def task_class(name: str) -> type[Task]:
    """The benchmark's class, imported now. ValueError if there is none of that name."""
    if name not in _TASKS:
        raise unknown(f"task={name}", "task", task_names())
    module, _, attribute = _TASKS[name].partition(":")
    return getattr(importlib.import_module(module), attribute)
