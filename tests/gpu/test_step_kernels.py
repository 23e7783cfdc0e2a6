"""A decode step of all layers with Triton kernels: no host synchronisation; one CUDA graph."""

from __future__ import annotations

import pytest
import torch
from kernel_parity import DEVICE, INTERPRETED, needs_triton
from retrobench_kernels import dispatch
from retrobench_methods.retroinfer import RetroInfer
from torch.utils._python_dispatch import TorchDispatchMode

from retrobench.measure.probe import CountingProbe
from tests.support import open_on, random_ids

pytestmark = needs_triton
WAITS = {"_local_scalar_dense", "nonzero", "masked_select", "equal", "is_nonzero", "_unique2"}
STEPS = 4 if DEVICE == "cuda" else 2  # eager, captured, replayed; the interpreter is slow
SMALL = {
    "sink_tokens": 2,
    "local_tokens": 8,
    "update_tokens": 16,
    "kmeans_iterations": 2,
    "retrieval_frac": 0.3,
    "page_tokens": 4,
}
CACHED = {**SMALL, "cache": "device", "cache_frac": 0.3, "placement": "auto"}
RESIDENT = {**SMALL, "cache": "none", "placement": "gpu"}
CASES = [("retroinfer", CACHED), ("full", {"backend": "auto"}), ("quest", {"page_size": 4})]
CASES += [("oracle_topk", {}), ("random", {}), ("streaming", {})]
CASES += [] if INTERPRETED else [("retroinfer", RESIDENT)]
RUNS = [(case, "eager") for case in CASES]
RUNS += [(case, "graph") for case in CASES if case[0] in ("retroinfer", "full")]


class NoHostSync(TorchDispatchMode):
    """Raises where an operation would make the host wait for a CUDA device."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        masks = [a for a in args if isinstance(a, (list, tuple))]
        by_mask = name.startswith("index") and any(
            isinstance(t, torch.Tensor) and t.dtype == torch.bool for m in masks for t in m
        )
        assert name not in WAITS and not by_mask, f"{name} waits for the device"
        return func(*args, **(kwargs or {}))


def opened(model, case, executor):
    """A session of two rows of different length, which counts as scoring runs do."""
    name, options = case
    prompts = [random_ids(70), random_ids(61, 1)]
    budget = "60%" if name in ("oracle_topk", "random", "streaming") else None
    options = options if budget is None else {"sink_tokens": 2, "local_tokens": 8}
    return open_on(
        model, name, prompts, options, new_tokens=STEPS + 20, budget=budget,
        executor=executor, probe=CountingProbe(),
    )  # fmt: skip


def steps(session, watch):
    """Logits of a few steps; none may wait for the device if ``watch``."""
    found = []
    for step in range(STEPS):
        token = torch.full((2, 1), 7 + step, device=DEVICE)
        if watch:
            with NoHostSync():
                logits = session.step(token)
        else:
            logits = session.step(token)
        found.append(logits.clone())
    return found


@pytest.mark.parametrize(("case", "executor"), RUNS, ids=str)
@torch.inference_mode()
def test_no_step_waits_for_the_device(case, executor, model_factory, monkeypatch):
    model = model_factory(num_hidden_layers=1 if INTERPRETED else 3).to(DEVICE)
    monkeypatch.setenv("RETROBENCH_KERNELS", "naive")
    expected = steps(opened(model, case, "eager"), watch=False)
    monkeypatch.setattr(RetroInfer, "fused", True)  # what a step does on a GPU
    monkeypatch.setenv("RETROBENCH_KERNELS", "auto")
    monkeypatch.setitem(dispatch._FAST, "cpu", "triton")
    session = opened(model, case, executor)
    for got, naive in zip(steps(session, watch=True), expected, strict=True):
        torch.testing.assert_close(got, naive, atol=1e-3, rtol=1e-3)
    session.report_counts()
    assert session.probe.missing(session.layers, STEPS) == []
    if executor == "graph" and not INTERPRETED:
        assert session.executor.captured.graph is not None


def test_the_detector_sees_a_wait():
    with pytest.raises(AssertionError, match="waits"), NoHostSync():
        torch.zeros(1).item()
    with pytest.raises(AssertionError, match="waits"), NoHostSync():
        torch.zeros(2)[torch.tensor([True, False])]
