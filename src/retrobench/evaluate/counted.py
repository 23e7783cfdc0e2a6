"""Bytes that a method moves per decode step, counted while it runs on synthetic keys and values.

Two KV heads of one sequence are run and scaled to the model: methods treat KV heads alike, and the
synthetic ones are drawn alike. What a drive would read in whole pages is counted from the positions
that are attended, unless the method counts pages itself.
"""

import dataclasses
from collections import defaultdict
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

import torch
from torch import Tensor

from retrobench.core.budget import Budget
from retrobench.core.counts import BYTES
from retrobench.core.method import Method
from retrobench.evaluate.speed import count_steps
from retrobench.evaluate.synthetic import SpeedRun, SyntheticRun
from retrobench.measure.probe import CountingProbe
from retrobench.memory.placement import ResolvedPlacement
from retrobench.serving.dims import VALUE_BYTES, ModelDims
from retrobench.serving.traffic import Traffic, TrafficCurve
from retrobench.tasks.speed import SpeedConfig

KV_HEADS = 2  # of the counted run
FILL_STEPS = 8  # before counting: block caches fill in them
PAGE_BYTES = 4096  # of flash (arXiv 2409.04992, IV-C)
SHORTEST = 1024  # tokens of the shortest counted context


class PageProbe(CountingProbe):
    """Also counts the flash pages of attended tokens: consecutive tokens of one head, K and V."""

    detail = True

    def __init__(self, page_tokens: int) -> None:
        super().__init__(counting=False)
        self.page_tokens = page_tokens
        self.pages: dict[int, float] = defaultdict(float)  # by layer

    def selected(
        self, layer: int, token_BGR: Tensor, estimate: Any = None, member_BGE: Tensor | None = None
    ) -> None:
        """Pages that hold a token of any query head of a KV head."""
        for token_N in token_BGR.reshape(KV_HEADS, -1) if self.counting else ():
            page_N = token_N[token_N >= 0] // self.page_tokens
            self.pages[layer] += 2 * len(page_N.unique())


def traffic_curve(
    method_class: type[Method],
    config: Any,
    budget: Budget | None,
    dims: ModelDims,
    max_context: int,
    *,
    flash: bool,
    device: str,
) -> TrafficCurve:
    """Traffic of a model's layers at contexts up to ``max_context``; ``flash``: count pages too.

    ``device``: of the machine that is modelled, which decides how a block cache is managed.
    """
    contexts = counted_contexts(max_context)
    counted = [
        _counted(method_class, _as_on(config, flash, device), budget, dims, context, flash)
        for context in contexts
    ]
    source = f"counted on synthetic keys at {', '.join(map(str, contexts))} tokens"
    return TrafficCurve(list(zip(contexts, counted, strict=True)), source)


def counted_contexts(max_context: int) -> Sequence[int]:
    """Three contexts, the last one ``max_context`` or more."""
    last = max(SHORTEST * 4, max_context)
    return SHORTEST, max(2 * SHORTEST, round(last / 4)), last


def _as_on(config: Any, flash: bool, device: str) -> Any:
    """Options that make a run on a CPU count what happens on the device that is modelled."""
    names = {f.name for f in dataclasses.fields(config)}
    if flash and "flash" in names:
        return dataclasses.replace(config, flash=True)
    if "placement" not in names or device == "cpu":
        return config
    manager = ResolvedPlacement.of(config, device).manager
    return dataclasses.replace(config, cache=manager)


@cache
def _counted(
    method_class: type[Method],
    config: Any,
    budget: Budget | None,
    dims: ModelDims,
    context: int,
    flash: bool,
) -> Traffic:
    layers = 2 if method_class.needs.layer_inputs else 1
    asked = SpeedConfig(
        context=(context,), layers=layers, dtype="bfloat16", warmup=FILL_STEPS, steps=3, cold=False,
        error_steps=0,
    )  # fmt: skip
    group = dims.heads // dims.kv_heads
    run = SpeedRun(
        config=asked, method_class=method_class, method_config=config, budget=budget,
        device="cpu", executor="eager", heads=(KV_HEADS * group, KV_HEADS, dims.head_dim),
    )  # fmt: skip
    page_tokens = max(1, PAGE_BYTES // (dims.head_dim * VALUE_BYTES))
    probe = PageProbe(page_tokens) if flash else CountingProbe(counting=False)
    runner = SyntheticRun(run, context, 1, probe)
    try:
        with torch.inference_mode():
            runner.prepare(lambda _: None)
            for step in range(FILL_STEPS):
                runner.step(step, compare=False)
            counts = count_steps(runner, probe, asked)
            stats = dict(runner.method.stats())
    finally:
        runner.close()
    steps = counts["decode_calls"][str(runner.shape.layers[-1])]
    found = {kind: _whole_model(probe.by_layer(kind), runner, dims) / steps for kind in BYTES}
    if "flash_read_bytes" in stats:  # the method knows its pages, and all its work is the drive's
        found["flash"] = stats["flash_read_bytes"] / layers * dims.layers
        found["kv"], found["index"] = found["kv"] + found["index"], 0.0
    elif isinstance(probe, PageProbe) and probe.pages:
        found["flash"] = _whole_model(probe.pages, runner, dims) * PAGE_BYTES / steps
    else:  # nothing is chosen: all pages
        found["flash"] = found["kv"]
    heads = dims.kv_heads / KV_HEADS
    return Traffic(**{kind: amount * heads for kind, amount in found.items()})


def _whole_model(by_layer: Mapping[int, float], runner: SyntheticRun, dims: ModelDims) -> float:
    """Of all layers of the model, the rest like the last one: the first may be treated apart."""
    counted = [by_layer.get(layer, 0.0) for layer in runner.shape.layers]
    return sum(counted) + (dims.layers - len(counted)) * counted[-1]
