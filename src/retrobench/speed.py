"""Times a method's decode steps: on injected keys and values, or on a model end to end.

One call measures one sample of ``task=speed`` (a context and a batch size). The clock is read
after the device has finished, warm-up steps are apart, and the output error against exact
attention is computed outside of the timed parts.
"""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from retrobench.core.method import AttentionArgs, Calibrator, Method
from retrobench.core.shapes import KVShape
from retrobench.core.spec import to_plain
from retrobench.core.task import Sample
from retrobench.engine import injected
from retrobench.engine.loader import Loaded
from retrobench.engine.session import Session
from retrobench.measure.ceilings import flush_data, read, read_gb_s
from retrobench.measure.clock import make_clock
from retrobench.measure.machine import NotEnoughMemory, available_bytes, peak_bytes, reset_peak
from retrobench.measure.probe import CountingProbe
from retrobench.runspec import RunSpec
from retrobench.tasks.speed import SHAPES, SpeedConfig

_MIDDLE_LAYER = 8  # injected layers stand for middle ones: some methods keep the first dense


@dataclass(slots=True)
class Timed:
    """Seconds of each part of one measured session."""

    step_s: list[float] = field(default_factory=list)
    errors: list[float] = field(default_factory=list)  # per compared step and row
    prefill_s: float | None = None
    seal_s: float = 0.0


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


class Injected:
    """A method fed with made-up keys and values, layer by layer."""

    def __init__(
        self,
        spec: RunSpec,
        method_class: type[Method],
        context: int,
        batch: int,
        probe: CountingProbe,
        device: str,
    ) -> None:
        self.config: SpeedConfig = spec.task_config
        if method_class.needs.layer_inputs and self.config.layers < 2:
            raise ValueError(
                f"method={spec.method} foretells a layer from the one before: use task.layers=2 "
                "or more"
            )
        heads, groups, dim = SHAPES[self.config.shape]
        self.shape = KVShape(
            pad_tokens=(0,) * batch,
            layers=tuple(range(_MIDDLE_LAYER, _MIDDLE_LAYER + self.config.layers)),
            num_heads=heads,
            num_kv_heads=groups,
            head_dim=dim,
            prompt_tokens=context,
            max_tokens=context + self.config.warmup + self.config.steps,
            dtype=self.config.dtype,
            device=device,
        )
        plan = method_class.plan(spec.method_config, self.shape, spec.budget)
        self._check_memory(spec.method, plan.total)
        self.args = AttentionArgs(scale=dim**-0.5)
        self.clock = make_clock(device)
        self.method = method_class(spec.method_config, self.shape, probe, spec.budget)
        # the layer whose output is compared; nothing foretells the first one, which stays dense
        self.compared = self.shape.layers[-1 if method_class.needs.layer_inputs else 0]
        self.view: injected.InjectedView | None = None
        if method_class.needs.layer_inputs:
            self.view = injected.InjectedView(self._identity())
            if method_class.Calibrator is not None:
                self._calibrate(method_class.Calibrator, spec.method_config)
            self.method.bind(self.view)
        self.timed = Timed()
        self.exact: tuple[Tensor, Tensor] | None = None  # K and V of the compared layer

    def _check_memory(self, method: str, planned: int) -> None:
        layer = self.shape.layer_token_bytes * self.shape.batch * self.shape.max_tokens
        need, free = planned + 3 * layer, available_bytes()
        if self.shape.device == "cpu" and free and need > free:
            raise NotEnoughMemory(
                f"method={method} with {self.shape.prompt_tokens} tokens x {self.shape.batch} "
                f"needs {need / 2**30:.1f} GiB but {free / 2**30:.1f} GiB are free; use a smaller "
                "task.context, task.batch or task.layers"
            )

    def _identity(self) -> str:
        config = self.config
        return f"injected-{config.shape}-{config.layers}-{config.dtype}-{config.seed}"

    def _calibrate(self, calibrator: type[Calibrator], config: Any) -> None:
        """The file that the method needs beforehand, from the first keys and their queries."""
        tokens = 512
        shape = dataclasses.replace(
            self.shape, pad_tokens=(0,), prompt_tokens=tokens, max_tokens=tokens
        )
        watcher = calibrator(config, shape)
        for layer in shape.layers:
            k, v = (part[:1] for part in self._made(layer, tokens, 0))
            asked = [injected.queries(k, shape.group, seed) for seed in range(tokens)]
            watcher.prefill(layer, torch.cat(asked, 2), k, v, self.args)
        watcher.save(self._identity(), {"text": "injected"})
        watcher.close()

    def _made(self, layer: int, tokens: int, seed: int) -> tuple[Tensor, Tensor]:
        shape = self.shape
        return injected.keys_and_values(
            shape.batch,
            shape.num_kv_heads,
            tokens,
            shape.head_dim,
            getattr(torch, shape.dtype),
            self.config.seed + 1009 * layer + seed,
            shape.device,
        )

    def prepare(self, detail: Callable[[str], None]) -> Timed:
        """Hand over the prompt of every layer, then build the index."""
        for layer in self.shape.layers:
            k, v = self._made(layer, self.shape.prompt_tokens, 0)
            last = injected.queries(k, self.shape.group, self.config.seed)
            self.method.prefill(layer, last, k, v, self.args)  # nobody needs the other outputs
            if layer == self.compared and self.config.error_steps:
                self.exact = k, v
        detail(f"{self.shape.prompt_tokens} tokens: index")
        start = self.clock()
        self.method.seal()
        self.timed.seal_s = self.clock() - start
        return self.timed

    def step(self, step: int, compare: bool) -> float:
        """Seconds of one decode step over all layers, between cold caches if asked."""
        if self.view is not None:
            return self._step_ahead(self.view, step, compare)
        total = 0.0
        for layer in self.shape.layers:
            k, v = self._made(layer, 1, 31 * (step + 1))
            prompt = self.exact[0] if self.exact is not None else k
            q = injected.queries(prompt, self.shape.group, 1000 * layer + step)
            if self.config.cold:
                read(flush_data(self.shape.device))
            start = self.clock()
            out = self.method.decode(layer, q, k, v, self.args)
            total += self.clock() - start
            if layer == self.compared and self.exact is not None:
                self._append(k, v)
                if compare:
                    self.timed.errors += _errors(q, out, *self.exact, self.args.scale)
        start = self.clock()
        self.method.step()
        return total + self.clock() - start

    def _step_ahead(self, view: injected.InjectedView, step: int, compare: bool) -> float:
        """Likewise where a layer works for the next: nothing untimed comes between the layers.

        Caches are cold before the first layer only; a model's projections and MLP, behind which
        more of a fetch would hide, are not there.
        """
        made = {layer: self._made(layer, 1, 31 * (step + 1)) for layer in self.shape.layers}
        keys = self.exact[0] if self.exact is not None else made[self.compared][0]
        view.next = {
            layer: injected.queries(keys, self.shape.group, 1000 * layer + step) for layer in made
        }
        hidden, outputs = torch.empty(0), {}
        if self.config.cold:
            read(flush_data(self.shape.device))
        start = self.clock()
        for layer, (k, v) in made.items():
            self.method.layer_input(layer, hidden, "decode")
            outputs[layer] = self.method.decode(layer, view.next[layer], k, v, self.args)
        self.method.step()
        seconds = self.clock() - start
        if self.exact is not None:
            self._append(*made[self.compared])
            if compare:
                q, out = view.next[self.compared], outputs[self.compared]
                self.timed.errors += _errors(q, out, *self.exact, self.args.scale)
        return seconds

    def _append(self, k_BGTD: Tensor, v_BGTD: Tensor) -> None:
        """The reference grows only while it is still compared."""
        assert self.exact is not None
        last = self.config.warmup + self.config.error_steps + self.shape.prompt_tokens
        if self.exact[0].shape[2] < last:
            k, v = self.exact
            self.exact = torch.cat([k, k_BGTD], 2), torch.cat([v, v_BGTD], 2)

    def close(self) -> None:
        """Free everything."""
        self.method.close()
        self.exact = None


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


def _errors(
    q_BHTD: Tensor, out_BHTD: Tensor, k_BGSD: Tensor, v_BGSD: Tensor, scale: float
) -> list[float]:
    """Relative L2 error of each row's output against exact attention in float64."""
    batch, heads = q_BHTD.shape[:2]
    groups = k_BGSD.shape[1]
    q_BGND = q_BHTD[:, :, 0].unflatten(1, (groups, heads // groups)).double()
    found = []
    for row in range(batch):
        wrong = size = 0.0
        for g in range(groups):
            weight = (q_BGND[row, g] @ k_BGSD[row, g].double().T * scale).softmax(-1)
            exact = weight @ v_BGSD[row, g].double()
            own = out_BHTD[row, g * heads // groups : (g + 1) * heads // groups, 0].double()
            wrong += float((own - exact).square().sum())
            size += float(exact.square().sum())
        found.append((wrong / size) ** 0.5)
    return found
