"""What measures on a CUDA device: captured calls, kernels, pinned reads, synthetic steps."""

from __future__ import annotations

import pytest
import torch

from retrobench.core.registry import method_class
from retrobench.core.spec import parse
from retrobench.evaluate import machine, speed
from retrobench.evaluate.synthetic import SpeedRun, SyntheticRun
from retrobench.measure.graph import CapturedCall
from retrobench.measure.probe import CountingProbe
from retrobench.tasks.machine import CEILINGS, KERNELS, PINNED, MachineConfig, MachineTask
from retrobench.tasks.speed import SpeedConfig

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]


def test_a_captured_call_runs_once_per_call_and_counts_what_ran():
    value, probe = torch.zeros(1, device="cuda"), CountingProbe()

    def add():
        value.add_(1)
        probe.count(0, attended=1, kv=value.sum())

    call = CapturedCall(add, "cuda", probe)
    for _ in range(5):
        call()
    assert value.item() == 5 and not probe.missing((0,), 5)
    assert probe.by_layer("kv") == {0: 1 + 2 + 3 + 4 + 5}


@pytest.mark.parametrize("case", [*CEILINGS, *PINNED, *KERNELS])
def test_machine_case(case):
    options = {"size_gib": 0.01, "pool_gib": [0.01], "context": [2048], "repeats": 3}
    config = parse(MachineConfig, {"cases": [case], **options}, "task")
    (sample,) = MachineTask(config).samples(None)
    with torch.inference_mode():
        found = machine.measure(config, sample, "cuda")["machine"]
    assert found["time_s"] > 0 and found["gb_s"] > 0
    assert found["mode"] == "graph" or case == "segmented_kmeans"


@pytest.mark.parametrize("cache", ["none", "device"])
def test_a_synthetic_graph_gives_what_single_calls_give(cache):
    method, found = method_class("retroinfer"), []
    placement = "gpu" if cache == "none" else "pinned"
    config = SpeedConfig(context=(4096,), layers=2, steps=4, error_steps=4)
    for executor in ("eager", "graph"):
        own = parse(method.Config, {"placement": placement, "cache": cache}, "method")
        run = SpeedRun(
            config=config, method_class=method, method_config=own, budget=None, device="cuda",
            executor=executor,
        )  # fmt: skip
        probe = CountingProbe(counting=False)
        with torch.inference_mode():
            runner = SyntheticRun(run, 4096, 1, probe)
            runner.prepare(lambda _: None)
            speed.take_steps(runner, config, lambda _: None)
            counts = speed.count_steps(runner, probe, config)
            found.append((runner.timed.errors, counts["bytes_per_step"]["kv"]))
            assert not probe.missing(runner.shape.layers, 8)
            runner.close()
    assert found[1][0] == pytest.approx(found[0][0], rel=0.1)
    assert found[1][1] == found[0][1]
