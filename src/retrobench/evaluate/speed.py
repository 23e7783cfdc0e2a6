"""Times a method's decode steps: on injected keys and values, or on a model end to end.

One call measures one sample of ``task=speed`` (a context and a batch size). The clock is read
after the device has finished, warm-up steps are apart, and the output error against exact
attention is computed outside of the timed parts.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable
from typing import Any

import torch

from retrobench.core.method import Method
from retrobench.core.spec import to_plain
from retrobench.core.task import Sample
from retrobench.engine.loader import Loaded
from retrobench.engine.session import Session
from retrobench.evaluate.synthetic import Injected, Timed
from retrobench.measure.ceilings import read_gb_s
from retrobench.measure.clock import make_clock
from retrobench.measure.machine import peak_bytes, reset_peak
from retrobench.measure.probe import CountingProbe
from retrobench.run.spec import RunSpec
from retrobench.tasks.speed import SpeedConfig


def measure(
    spec: RunSpec,
    loaded: Loaded,
    method_class: type[Method],
    sample: Sample,
    detail: Callable[[str], None],
) -> dict[str, Any]:
    """Facts of one sample for its row; ValueError where the method cannot run at this shape."""
    config: SpeedConfig = spec.task_config
    device, batch = str(loaded.model.device), int(sample.meta["batch"])
    reset_peak(device)
    probe = CountingProbe(spans=True)
    if config.shape == "model":
        run = _EndToEnd(spec, loaded, method_class, sample.length, batch, probe)
    else:
        run = Injected(spec, method_class, sample.length, batch, probe, device)
    before = read_gb_s(device)
    try:
        with torch.inference_mode():
            detail(f"{sample.length} tokens x {batch}: prefill")
            timed = run.prepare(detail)
            footprint = run.method.allocated()
            for step in range(config.warmup + config.steps):
                detail(f"{sample.length} tokens x {batch}: step {step + 1}")
                if step == config.warmup:
                    probe.reset()
                seconds = run.step(step, compare=0 <= step - config.warmup < config.error_steps)
                if step >= config.warmup:
                    timed.step_s.append(seconds)
            stats = dict(run.method.stats())
    finally:
        run.close()
    live = probe.row()
    ceiling = max(before, read_gb_s(device))
    return {
        "prefill_s": timed.prefill_s,
        "seal_s": timed.seal_s,
        "decode_s": sum(timed.step_s),
        "decode_steps": len(timed.step_s),
        "batch": batch,
        "live": live,
        "speed": summary(timed, live, batch, ceiling),
        "footprint": to_plain(footprint),
        "peak_bytes": peak_bytes(device),
        "method_stats": stats,
    }


def summary(timed: Timed, live: dict[str, Any], batch: int, ceiling: float) -> dict[str, Any]:
    low, middle, high = statistics.quantiles(timed.step_s, n=4)
    moved = sum(live["bytes_per_step"].get(kind, 0) for kind in ("kv", "index"))
    return {
        "step_s": middle,
        "step_q1_s": low,
        "step_q3_s": high,
        "step_min_s": min(timed.step_s),
        "tokens_per_s": batch / middle,
        "read_bytes": moved,
        "read_gb_s": moved / middle / 1e9,
        "ceiling_gb_s": ceiling,
        "output_error": statistics.mean(timed.errors) if timed.errors else None,
        "threads": torch.get_num_threads(),
        "span_ms": {k: 1000 * v / len(timed.step_s) for k, v in live["span_s"].items()},
    }


class _EndToEnd:
    """The loaded model on random token ids, a different prompt in each row."""

    def __init__(
        self,
        spec: RunSpec,
        loaded: Loaded,
        method_class: type[Method],
        context: int,
        batch: int,
        probe: CountingProbe,
    ) -> None:
        config: SpeedConfig = spec.task_config
        model = loaded.model
        new = config.warmup + config.steps
        if loaded.context_limit is not None and context + new > loaded.context_limit:
            raise ValueError(
                f"task.context={context} with {new} steps is longer than the context of the model "
                f"({loaded.context_limit} tokens)"
            )
        generator = torch.Generator().manual_seed(config.seed)
        vocabulary = model.config.get_text_config().vocab_size
        ids = torch.randint(0, vocabulary, (batch, context), generator=generator)
        self.clock = make_clock(str(model.device))
        self.session = Session(
            model,
            method_class,
            spec.method_config,
            ids.tolist(),
            probe=probe,
            clock=self.clock,
            max_new_tokens=new,
            budget=spec.budget,
            chunk_tokens=spec.engine.chunk_tokens,
        )
        self.method = self.session.method
        self.next_B1 = torch.empty(0)

    def prepare(self, detail: Callable[[str], None]) -> Timed:
        """Prefill and index build, timed."""
        timed = Timed()
        start = self.clock()
        logits = self.session.prefill(self.session.ids_BS.shape[1])
        timed.prefill_s = self.clock() - start
        start = self.clock()
        self.session.seal()
        timed.seal_s = self.clock() - start
        self.next_B1 = logits.argmax(-1, keepdim=True)
        return timed

    def step(self, step: int, compare: bool) -> float:
        """Seconds of one greedy decode step of the whole model."""
        start = self.clock()
        logits = self.session.step(self.next_B1)
        seconds = self.clock() - start
        self.next_B1 = logits.argmax(-1, keepdim=True)
        return seconds

    def close(self) -> None:
        """Free the session."""
        self.session.close()
