"""Stage 5: whole decode steps of a Llama-3.1-8B-shaped model (random weights), all layers.

Full attention and RetroInfer run the same transformers forward in the same kind of graph; only the
attention differs. The host-managed cache waits for the host in every layer, so it runs eagerly.
Memory caps limit torch's allocator: capacity is emulated, bandwidths are the machine's own.
"""

from __future__ import annotations

from typing import Any

import torch
from retrobench_kernels.dense_decode import dense_decode
from retrobench_methods.retroinfer import RetroInfer, RetroInferConfig
from retrobench_methods.retroinfer.device import GraphDecode
from torch import Tensor
from transformers import AutoModelForCausalLM, LlamaConfig

from gpu_stages.common import SMOKE, Bench, Shape, summary
from retrobench.core.method import AttentionArgs
from retrobench.engine import hf
from retrobench.engine.step_graph import StepGraph
from retrobench.measure.clock import make_clock

NEW_TOKENS = 64
RESIDENT = [(30_000, 1), (120_000, 1), (30_000, 28), (120_000, 7)]
CAP_GIB, CAPPED_CONTEXT, CAPPED_BATCH = 40, 120_000, 6


def run(bench: Bench) -> None:
    """KV on the device at every shape; then a memory cap with full, device and host managers."""
    model = _model(bench)
    shapes = [Shape(batch=batch, context=context) for context, batch in RESIDENT]
    for shape in bench.shapes(*shapes):
        for method in ("full", "retroinfer"):
            _case(bench, model, method, shape)
    capped = Shape(batch=CAPPED_BATCH, context=CAPPED_CONTEXT)
    _case(bench, model, "full", *bench.shapes(Shape(batch=1, context=CAPPED_CONTEXT)), CAP_GIB)
    for method in ("retroinfer_device_cache", "retroinfer_host_cache"):
        _case(bench, model, method, *bench.shapes(capped), CAP_GIB)
        _case(bench, model, method, *bench.shapes(Shape(batch=1, context=CAPPED_CONTEXT)), CAP_GIB)


def _case(bench: Bench, model: Any, method: str, shape: Shape, cap_gib: int | None = None) -> None:
    @bench.case("decode_step", method=method, shape=shape, cap_gib=cap_gib)
    def _(row: dict) -> None:
        _cap(bench, cap_gib)
        try:
            with torch.inference_mode():
                owner = _owner(bench, method, shape)
                row.update(_decode(bench, model, owner, shape))
            row["tokens_per_s"] = shape.batch / row["median_s"]
            row["hit_ratio"] = owner.hit_ratio()
        finally:
            _cap(bench, None)


def _decode(bench: Bench, model: Any, owner: Any, shape: Shape) -> dict[str, Any]:
    size = {"dtype": torch.int64, "device": bench.device}
    token = torch.randint(5, 100, (shape.batch, 1), **size)
    position = torch.full((shape.batch, 1), shape.context, **size)
    in_graph = not isinstance(owner, HostManaged)
    graph = StepGraph(model, owner, token, position, use_graph=in_graph)
    steps = 3 if bench.smoke else NEW_TOKENS - 4
    spent = []
    for step in range(steps + 3):
        owner.begin_step()
        seconds = _seconds(bench, graph)
        if step >= 3 or bench.smoke:  # compiled, captured, replayed once
            spent.append(seconds)
    mode = "graph" if graph.graph is not None else "eager"
    return {**summary(spent), "steps": len(spent), "mode": mode}


def _seconds(bench: Bench, graph: StepGraph) -> float:
    """One step on the clock, the device idle before and after."""
    clock = make_clock(bench.device)
    start = clock()
    graph.step()
    return clock() - start


def _cap(bench: Bench, gib: int | None) -> None:
    if bench.device == "cuda":
        total = torch.cuda.get_device_properties(0).total_memory
        torch.cuda.empty_cache()
        fraction = 1.0 if gib is None else min(1.0, gib * 2**30 / total)
        torch.cuda.set_per_process_memory_fraction(fraction)


def _model(bench: Bench) -> Any:
    shape = SMOKE if bench.smoke else Shape(batch=1, context=1)
    hidden = shape.heads * shape.dim
    config = LlamaConfig(
        vocab_size=128 if bench.smoke else 128_256,
        hidden_size=hidden,
        intermediate_size=hidden * 7 // 2,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.kv_heads,
        head_dim=shape.dim,
        max_position_embeddings=131_072,
    )
    with torch.device(bench.device):
        model = AutoModelForCausalLM.from_config(config, dtype=getattr(torch, shape.dtype))
    hf.attach(model)
    return model.eval()


def _owner(bench: Bench, method: str, shape: Shape) -> Any:
    if method == "full":
        return FullOwner(bench, shape)
    where = {
        "retroinfer": {"placement": "gpu", "cache": "none"},
        "retroinfer_device_cache": {"placement": "auto", "cache": "device"},
        "retroinfer_host_cache": {"placement": "auto", "cache": "host"},
    }[method]
    kv_shape = shape.kv_shape(bench.device, NEW_TOKENS)
    built = RetroInfer(RetroInferConfig(**where), kv_shape)
    for i in range(shape.layers):
        built.buffer.append_prompt(i, *_clustered(bench, shape))
    built.seal()
    return HostManaged(built) if where["cache"] == "host" else GraphDecode(built)


def _clustered(bench: Bench, shape: Shape) -> tuple[Tensor, Tensor]:
    """Keys around topics that change slowly along the context, and random values."""
    size, dtype = (shape.batch, shape.kv_heads, shape.context), getattr(torch, shape.dtype)
    topics = max(4, shape.context // 128)
    like = {"dtype": dtype, "device": bench.device}
    topic = torch.randn(shape.batch, shape.kv_heads, topics, shape.dim, **like)
    block = torch.randint(topics, (*size[:2], -(-shape.context // 8)), device=bench.device)
    label = block.repeat_interleave(8, -1, output_size=block.shape[-1] * 8)[..., : shape.context]
    k = topic.gather(2, label[..., None].expand(-1, -1, -1, shape.dim))
    k += 0.4 * torch.randn(*size, shape.dim, **like)
    return k, torch.randn(*size, shape.dim, **like)


class FullOwner:
    """Full attention with its length in device memory."""

    def __init__(self, bench: Bench, shape: Shape) -> None:
        self.layers = []
        size = (shape.batch, shape.kv_heads, shape.context + NEW_TOKENS, shape.dim)
        like = {"dtype": getattr(torch, shape.dtype), "device": bench.device}
        for _ in range(shape.layers):
            k, v = (torch.randn(*size, **like) for _ in "kv")
            length = torch.full((shape.batch,), shape.context, dtype=torch.int32, device=k.device)
            self.layers.append((k, v, length))
        self.row_B = torch.arange(shape.batch, device=bench.device)

    def begin_step(self) -> None:
        """Nothing to do on the host."""

    def hit_ratio(self) -> float | None:
        """No cache."""

    def attend(
        self, layer: int, q_BHTD: Tensor, k_BGTD: Tensor, v_BGTD: Tensor, args: AttentionArgs
    ) -> Tensor:
        """Append and attend everything."""
        k, v, length = self.layers[layer]
        place = length.long()
        k[self.row_B, :, place], v[self.row_B, :, place] = k_BGTD[:, :, 0], v_BGTD[:, :, 0]
        length.add_(1)
        out, _ = dense_decode(q_BHTD[:, :, 0].contiguous(), k, v, args.scale, end_B=length)
        return out[:, :, None]


class HostManaged:
    """The method as the session runs it, with the page table on the host."""

    def __init__(self, method: RetroInfer) -> None:
        self.method, self.attend = method, method.decode

    def begin_step(self) -> None:
        """The method counts by itself."""

    def hit_ratio(self) -> float | None:
        """From the host's counters."""
        cache = self.method.buffer.cache
        assert cache is not None
        cache.traffic()
        return float(cache.stats()["hit_ratio"])
