"""Times a method's decode steps: on synthetic keys and values, or on a model end to end.

One call measures one sample of ``task=speed`` (a context and a batch size). Timing and accounting
are two passes over the same cell: the timed steps count nothing, the steps after them are counted.
The clock is read after the device has finished, warm-up steps are apart, and the output error
against exact attention is computed outside of the timed parts.
"""

import statistics
from collections.abc import Callable
from typing import Any

import torch

from retrobench.core.spec import to_plain
from retrobench.core.task import Sample
from retrobench.engine.generation import Decoding
from retrobench.engine.loader import Loaded
from retrobench.engine.session import Session
from retrobench.evaluate.synthetic import COUNTED_STEPS, SpeedRun, SyntheticRun, Timed
from retrobench.measure.ceilings import read_gb_s
from retrobench.measure.clock import make_clock
from retrobench.measure.machine import peak_bytes, reset_peak
from retrobench.measure.probe import CountingProbe
from retrobench.tasks.speed import SpeedConfig

GREEDY = Decoding(max_new_tokens=1)


class ModelRun:
    """The loaded model on random token ids, a different prompt in each row."""

    def __init__(
        self,
        run: SpeedRun,
        sample: Sample,
        open_session: Callable[..., Session],
        probe: CountingProbe,
    ) -> None:
        self.clock, self.probe, self.timed = make_clock(run.device), probe, Timed()
        new_tokens = sample.max_new_tokens + COUNTED_STEPS
        self.session = open_session(new_tokens, probe=probe, executor=run.executor)
        self.method = self.session.method
        self.executor = self.session.executor.name
        self.generator = torch.Generator(self.session.ids_BS.device)

    def prepare(self, detail: Callable[[str], None]) -> None:
        """The session is built; its times are known."""
        self.timed.prefill_s = self.session.prompt.seconds
        self.timed.build_s = self.session.build_s

    def step(self, step: int, compare: bool) -> float:
        """Seconds of one greedy decode step of the whole model."""
        session = self.session
        start = self.clock()
        session.step(session.executor.choose(session.logits, GREEDY, self.generator))
        return self.clock() - start

    def counting(self, on: bool) -> None:
        """Count from here on; and time spans, which a graph cannot."""
        self.probe.counting = on
        self.probe.timing = on and self.executor == "eager"
        self.session.executor.restart()

    def report_counts(self) -> None:
        """What was counted elsewhere."""
        self.session.report_counts()

    def close(self) -> None:
        """Free the session."""
        self.session.close()


Runner = ModelRun | SyntheticRun


def measure(
    run: SpeedRun,
    sample: Sample,
    open_session: Callable[..., Session],
    detail: Callable[[str], None],
) -> dict[str, Any]:
    """Fields of one sample for its row; ValueError where the method cannot run at this shape."""
    config, batch = run.config, int(sample.meta["batch"])
    reset_peak(run.device)
    probe = CountingProbe(spans=False, counting=False)
    runner: Runner
    if config.shape == "model":
        runner = ModelRun(run, sample, open_session, probe)
    else:
        runner = SyntheticRun(run, sample.length, batch, probe)
    before = read_gb_s(run.device)
    try:
        with torch.inference_mode():
            detail(f"{sample.length} tokens x {batch}: prompt")
            runner.prepare(detail)
            footprint = runner.method.allocated()
            take_steps(runner, config, lambda step: detail(f"{sample.length} x {batch}: {step}"))
            counts = count_steps(runner, probe, config)
            stats = dict(runner.method.stats())
    finally:
        runner.close()
    ceiling = max(before, read_gb_s(run.device))
    timed = runner.timed
    return {
        "prefill_s": timed.prefill_s,
        "seal_s": timed.build_s,
        "decode_s": sum(timed.step_s),
        "decode_steps": len(timed.step_s),
        "batch": batch,
        "live": {**counts, "context_tokens": counted_context(config, sample.length)},
        "speed": summary(timed, counts, batch, ceiling),
        "footprint": to_plain(footprint),
        "peak_bytes": peak_bytes(run.device),
        "method_stats": stats,
        "executor": runner.executor,
    }


def take_steps(runner: Runner, config: SpeedConfig, on_step: Callable[[int], None]) -> None:
    """Warm-up and timed steps; nothing is counted."""
    for step in range(config.warmup + config.steps):
        on_step(step)
        timed = step - config.warmup
        seconds = runner.step(step, compare=0 <= timed < config.error_steps)
        if timed >= 0:
            runner.timed.step_s.append(seconds)


def count_steps(runner: Runner, probe: CountingProbe, config: SpeedConfig) -> dict[str, Any]:
    """Counts and spans of a few more steps."""
    runner.report_counts()
    probe.reset()
    runner.counting(True)
    for step in range(COUNTED_STEPS):
        runner.step(config.warmup + config.steps + step, compare=False)
    runner.report_counts()
    return probe.row()


def counted_context(config: SpeedConfig, prompt_tokens: int) -> float:
    """Tokens of the context in the mean of the counted steps, which come after the timed ones."""
    return prompt_tokens + config.warmup + config.steps + (COUNTED_STEPS + 1) / 2


def summary(timed: Timed, counts: dict[str, Any], batch: int, ceiling: float) -> dict[str, Any]:
    """Quartiles of a step, rates, and the machine's own rate."""
    low, middle, high = statistics.quantiles(timed.step_s, n=4)
    read = sum(counts["bytes_per_step"].get(kind, 0) for kind in ("kv", "index"))
    steps = max(1, *counts["decode_calls"].values(), 1)
    return {
        "step_s": middle,
        "step_q1_s": low,
        "step_q3_s": high,
        "step_min_s": min(timed.step_s),
        "tokens_per_s": batch / middle,
        "read_bytes": read,
        "read_gb_s": read / middle / 1e9,
        "ceiling_gb_s": ceiling,
        "output_error": statistics.mean(timed.errors) if timed.errors else None,
        "threads": torch.get_num_threads(),
        "span_ms": {k: 1000 * v / steps for k, v in counts["span_s"].items()},
    }


def random_prompts(loaded: Loaded, config: SpeedConfig, sample: Sample) -> list[list[int]]:
    """Random token ids; ValueError if they and the steps are longer than the model's context."""
    new_tokens = sample.max_new_tokens + COUNTED_STEPS
    limit = loaded.context_limit
    if limit is not None and sample.length + new_tokens > limit:
        raise ValueError(
            f"task.context={sample.length} with {new_tokens} steps is longer than the context of "
            f"the model ({limit} tokens)"
        )
    generator = torch.Generator().manual_seed(config.seed)
    vocabulary = loaded.model.config.get_text_config().vocab_size
    size = (int(sample.meta["batch"]), sample.length)
    return torch.randint(0, vocabulary, size, generator=generator).tolist()
