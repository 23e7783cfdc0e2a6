"""A decode step of all layers with Triton kernels: no host synchronisation; one CUDA graph."""

from __future__ import annotations

import pytest
import torch
from kernel_parity import DEVICE, INTERPRETED, needs_triton
from retrobench_kernels import dispatch
from torch.utils._python_dispatch import TorchDispatchMode

from retrobench.core.shapes import KVShape
from retrobench.engine import hf
from retrobench.engine.step_graph import StepGraph

pytestmark = needs_triton
WAITS = {"_local_scalar_dense", "nonzero", "masked_select", "equal", "is_nonzero", "_unique2"}
STEPS = 4 if DEVICE == "cuda" else 2  # eager, captured, replayed; the interpreter is slow
CACHED = {"cache": "device", "cache_frac": 0.3, "placement": "auto"}
PLACEMENTS = [CACHED] + ([] if INTERPRETED else [{"cache": "none", "placement": "gpu"}])


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


def decoder(model, options, **graph):
    """A step graph over random keys and values of two rows of different length."""
    from retrobench_methods.retroinfer import RetroInfer, RetroInferConfig
    from retrobench_methods.retroinfer.device import GraphDecode

    config = RetroInferConfig(
        sink_tokens=2,
        local_tokens=8,
        update_tokens=16,
        kmeans_iterations=2,
        retrieval_frac=0.3,
        page_tokens=4,
        **options,
    )
    heads, groups, dim = hf.kv_geometry(model)
    shape = KVShape(
        pad_tokens=(0, 9),
        layers=tuple(range(model.config.num_hidden_layers)),
        num_heads=heads,
        num_kv_heads=groups,
        head_dim=dim,
        prompt_tokens=70,
        max_tokens=90,
        dtype=hf.text_dtype(model),
        device=DEVICE,
    )
    method = RetroInfer(config, shape)
    generator = torch.Generator().manual_seed(0)
    for i in range(len(shape.layers)):
        k, v = (torch.randn(2, groups, 70, dim, generator=generator).to(DEVICE) for _ in "kv")
        method.buffer.append_prompt(i, k, v)
    method.seal()
    owner = GraphDecode(method)
    token = torch.tensor([[7], [9]], device=DEVICE)
    position = torch.tensor([[70], [61]], device=DEVICE)
    return owner, StepGraph(model, owner, token, position, **graph)


@pytest.mark.parametrize("placement", PLACEMENTS)
def test_step_with_kernels(placement, model_factory, monkeypatch):
    model = model_factory(num_hidden_layers=1 if INTERPRETED else 3).to(DEVICE)
    hf.attach(model)
    monkeypatch.setenv("RETROBENCH_KERNELS", "naive")
    owner, graph = decoder(model, placement, use_graph=False)
    expected = []
    for _ in range(STEPS):
        owner.begin_step()
        expected.append(graph.step().clone())
    owner, graph = decoder(model, placement, use_graph=not INTERPRETED)
    monkeypatch.setenv("RETROBENCH_KERNELS", "auto")
    monkeypatch.setitem(dispatch._FAST, "cpu", "triton")
    for step in range(STEPS):
        owner.begin_step()
        with NoHostSync():
            logits = graph.step()
        torch.testing.assert_close(logits, expected[step], atol=1e-3, rtol=1e-3)
    assert INTERPRETED or graph.graph is not None


def test_the_detector_sees_a_wait():
    with pytest.raises(AssertionError, match="waits"), NoHostSync():
        torch.zeros(1).item()
    with pytest.raises(AssertionError, match="waits"), NoHostSync():
        torch.zeros(2)[torch.tensor([True, False])]
