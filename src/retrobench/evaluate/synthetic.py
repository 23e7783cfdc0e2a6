"""A method fed with synthetic keys and values, one decode step at a time, timed.

Only what the method does is timed; making inputs, emptying caches and comparing the output with
exact attention are not.
"""

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from retrobench.core.budget import Budget
from retrobench.core.method import AttentionArgs, Calibrator, Method, PromptLayer
from retrobench.core.shapes import KVShape
from retrobench.engine import synthetic
from retrobench.engine.executor import takes_graph
from retrobench.measure.ceilings import flush_data, read
from retrobench.measure.clock import make_clock
from retrobench.measure.graph import CapturedCall
from retrobench.measure.machine import available_bytes, require_free
from retrobench.measure.probe import CountingProbe
from retrobench.tasks.speed import SHAPES, SpeedConfig

_MIDDLE_LAYER = 8  # synthetic layers stand for middle ones: some methods keep the first dense
COUNTED_STEPS = 8  # decode steps of the counting pass


@dataclass(slots=True)
class Timed:
    """Seconds of each part of one measured session."""

    step_s: list[float] = field(default_factory=list)
    errors: list[float] = field(default_factory=list)  # per compared step and row
    prefill_s: float | None = None
    build_s: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class SpeedRun:
    """What is timed: a method with its options, on a device."""

    config: SpeedConfig
    method_class: type[Method]
    method_config: Any
    budget: Budget | None
    device: str
    executor: str = "auto"
    heads: tuple[int, int, int] | None = None  # in place of the shape's, where bytes are counted


class SyntheticRun:
    """A method fed with synthetic keys and values, layer by layer."""

    def __init__(self, run: SpeedRun, context: int, batch: int, probe: CountingProbe) -> None:
        self.config, self.probe = run.config, probe
        method_class, config, device = run.method_class, run.method_config, run.device
        self.ahead = method_class.needs.layer_inputs  # it works a layer ahead
        if self.ahead and self.config.layers < 2:
            raise ValueError(
                f"method={method_class.name} predicts a layer from the one before: use "
                "task.layers=2 or more"
            )
        if method_class.needs_of(config).modules:
            raise ValueError(
                f"method={method_class.name} reads the modules of a model: use task.shape=model"
            )
        heads, groups, dim = run.heads or SHAPES[self.config.shape]
        self.shape = KVShape(
            pad_tokens=(0,) * batch,
            layers=tuple(range(_MIDDLE_LAYER, _MIDDLE_LAYER + self.config.layers)),
            num_heads=heads,
            num_kv_heads=groups,
            head_dim=dim,
            prompt_tokens=context,
            max_tokens=context + self.config.warmup + self.config.steps + COUNTED_STEPS,
            dtype=self.config.dtype,
            device=device,
        )
        plan = method_class.plan(config, self.shape, run.budget)
        self._check_memory(method_class.name, plan.total)
        self.args = AttentionArgs(scale=dim**-0.5)
        self.clock = make_clock(device)
        self.method = method_class(config, self.shape, probe, run.budget)
        # the layer whose output is compared; nothing predicts the first one, which stays dense
        self.compared = self.shape.layers[-1 if self.ahead else 0]
        self.view: synthetic.SyntheticView | None = None
        if self.ahead or method_class.needs.calibration:
            self.view = synthetic.SyntheticView(self._identity())
            if method_class.Calibrator is not None:
                self._calibrate(method_class.Calibrator, config)
            self.method.bind(self.view)
        self.timed = Timed()
        self.exact: tuple[Tensor, Tensor] | None = None  # K and V of the compared layer
        self.keys = torch.empty(0)  # its prompt, whose keys queries resemble
        self.drifting: dict[int, Tensor] = {}  # each layer's last query, in float32
        self.inputs: dict[int, tuple[Tensor, ...]] = {}  # q, k, v of the step, by layer
        self.outputs: dict[int, Tensor] = {}
        self.executor = self._choose_executor(run.executor)
        self.method.static = self.executor == "graph"
        probe_of_graph = probe if self.executor == "graph" else None
        self.decode_all = CapturedCall(self._decode_all, device, probe_of_graph)

    def _check_memory(self, method: str, planned: int) -> None:
        layer = self.shape.layer_token_bytes * self.shape.batch * self.shape.max_tokens
        what = f"method={method} with {self.shape.prompt_tokens} tokens x {self.shape.batch}"
        fix = "a smaller task.context, task.batch or task.layers"
        if self.shape.device == "cpu":
            require_free(planned + 3 * layer, available_bytes(), what, "memory", fix)

    def _choose_executor(self, asked: str) -> str:
        """One CUDA graph of all layers, or a call per layer; see ``engine.executor``."""
        reason = self.method.no_graph(self.method.config, self.shape)
        if self.ahead:
            reason = f"method={self.method.name} predicts a layer from the one before"
        on_gpu = torch.device(self.shape.device).type == "cuda"
        try:
            return "graph" if takes_graph(asked, reason, on_gpu=on_gpu) else "eager"
        except ValueError:
            self.method.close()
            raise

    def _identity(self) -> str:
        config = self.config
        return f"synthetic-{config.shape}-{config.layers}-{config.dtype}-{config.seed}"

    def _calibrate(self, calibrator: type[Calibrator], config: Any) -> None:
        """The file that the method needs beforehand, from the first keys and their queries."""
        tokens = 512
        shape = dataclasses.replace(
            self.shape, pad_tokens=(0,), prompt_tokens=tokens, max_tokens=tokens
        )
        layers = {}
        for layer in shape.layers:
            k, v = (part[:1] for part in self._made(layer, tokens, 0))
            asked = [synthetic.queries(k, shape.group, seed) for seed in range(tokens)]
            layers[layer] = PromptLayer(
                k_BGSD=k, v_BGSD=v, q_BHWD=torch.cat(asked, 2), args=self.args
            )
        calibrator.save(config, layers, self._identity(), {"text": "synthetic"})

    def _made(self, layer: int, tokens: int, seed: int) -> tuple[Tensor, Tensor]:
        shape = self.shape
        return synthetic.keys_and_values(
            shape.batch,
            shape.num_kv_heads,
            tokens,
            shape.head_dim,
            getattr(torch, shape.dtype),
            self.config.seed + 1009 * layer + seed,
            shape.device,
        )

    def prepare(self, detail: Callable[[str], None]) -> None:
        """Hand over the prompt layer by layer; the index build is timed."""
        detail(f"{self.shape.prompt_tokens} tokens: index")
        for layer in self.shape.layers:
            k, v = self._made(layer, self.shape.prompt_tokens, 0)
            q = synthetic.queries(k, self.shape.group, self.config.seed)
            unturned = k.new_ones(()).expand(
                k.shape[0], *k.shape[2:]
            )  # these keys have no rotation
            prompt = PromptLayer(
                k_BGSD=k, v_BGSD=v, q_BHWD=q, args=self.args,
                cos_BSD=unturned, sin_BSD=unturned - 1,
            )  # fmt: skip
            start = self.clock()
            self.method.build(layer, prompt)
            self.timed.build_s += self.clock() - start
            if layer == self.compared:
                self.keys = k
                self.exact = (k, v) if self.config.error_steps else None
        self.method.finish_build()

    def step(self, step: int, compare: bool) -> float:
        """Seconds of one decode step over all layers, between cold caches if asked."""
        if self.ahead or self.executor == "graph":
            return self._step_at_once(step, compare)
        start = self.clock()
        self.method.begin_step()
        total = self.clock() - start
        for layer in self.shape.layers:
            q, k, v = self._input(layer, step)
            if self.config.cold:
                read(flush_data(self.shape.device))
            start = self.clock()
            self.outputs[layer] = self.method.decode(layer, q, k, v, self.args)
            total += self.clock() - start
            if layer == self.compared:
                self._compare((q, k, v), compare)
        start = self.clock()
        self.method.end_step()
        return total + self.clock() - start

    def _step_at_once(self, step: int, compare: bool) -> float:
        """Likewise with nothing untimed between the layers.

        For methods that work a layer ahead, and for a graph of all layers. Caches are cold before
        the first layer only; a model's projections and MLP, behind which more of a fetch would
        hide, are not there.
        """
        for layer in self.shape.layers:
            made = self._input(layer, step)
            if self.executor == "graph" and layer in self.inputs:  # addresses stay
                for held, new in zip(self.inputs[layer], made, strict=True):
                    held.copy_(new)
            else:
                self.inputs[layer] = made
        if self.view is not None:
            self.view.next = {layer: made[0] for layer, made in self.inputs.items()}
        if self.config.cold:
            read(flush_data(self.shape.device))
        start = self.clock()
        self.method.begin_step()
        self.decode_all() if self.executor == "graph" else self._decode_all()
        self.method.end_step()
        seconds = self.clock() - start
        self._compare(self.inputs[self.compared], compare)
        return seconds

    def _decode_all(self) -> None:
        """Every layer's decode call, from ``inputs`` to ``outputs``."""
        for layer, (q, k, v) in self.inputs.items():
            if self.ahead:
                self.method.layer_input(layer, torch.empty(0))
            self.outputs[layer] = self.method.decode(layer, q, k, v, self.args)

    def _input(self, layer: int, step: int) -> tuple[Tensor, ...]:
        """``q, k, v`` of one layer's step. With ``task.drift`` the query follows the last one."""
        k, v = self._made(layer, 1, 31 * (step + 1))
        keys = self.exact[0] if self.exact is not None else self.keys
        q = synthetic.queries(keys, self.shape.group, 1000 * layer + step)
        if self.config.drift:
            before = self.drifting.get(layer, q.float())
            fresh_share = (1 - self.config.drift**2) ** 0.5  # keeps the length of queries
            self.drifting[layer] = self.config.drift * before + fresh_share * q.float()
            q = self.drifting[layer].to(q.dtype)
        return q, k, v

    def _compare(self, made: tuple[Tensor, ...], compare: bool) -> None:
        """Output error of the compared layer, where it is asked for."""
        if self.exact is None:
            return
        q, k, v = made
        self._append(k, v)
        if compare:
            out = self.outputs[self.compared]
            self.timed.errors += _errors(q, out, *self.exact, self.args.scale)

    def _append(self, k_BGTD: Tensor, v_BGTD: Tensor) -> None:
        """The reference grows only while it is still compared."""
        assert self.exact is not None
        last = self.config.warmup + self.config.error_steps + self.shape.prompt_tokens
        if self.exact[0].shape[2] < last:
            k, v = self.exact
            self.exact = torch.cat([k, k_BGTD], 2), torch.cat([v, v_BGTD], 2)

    def counting(self, on: bool) -> None:
        """Count from here on; and time spans, which a graph cannot."""
        self.probe.counting = on
        self.probe.timing = on and self.executor == "eager"
        self.decode_all.restart()

    def report_counts(self) -> None:
        """What was counted elsewhere."""
        self.method.report_counts()

    def close(self) -> None:
        """Free everything."""
        self.method.close()
        self.exact, self.keys = None, torch.empty(0)
        self.decode_all.restart()
        self.inputs, self.outputs = {}, {}


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
